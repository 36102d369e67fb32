"""Metrics, checked by hand and against loops."""
