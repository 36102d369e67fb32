"""Prompts and prefixes: learned tokens, keys and values."""
