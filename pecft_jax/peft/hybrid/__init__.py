"""Transforms made of others that the literature treats as one."""
