"""Bounds that methods are compared with."""
