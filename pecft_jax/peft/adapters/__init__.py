"""Bottleneck adapters."""
