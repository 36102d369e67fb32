"""Learned rescaling."""
