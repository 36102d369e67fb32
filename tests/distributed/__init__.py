"""Runs on eight virtual devices."""
