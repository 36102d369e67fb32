"""Meshes, sharding rules, and processes."""
