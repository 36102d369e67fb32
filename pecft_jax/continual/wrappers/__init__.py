"""Wrappers: methods around a method."""
