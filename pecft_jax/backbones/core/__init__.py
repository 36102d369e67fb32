"""Shared parts of the families of backbones."""
