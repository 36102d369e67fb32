"""Metrics of continual learning."""
