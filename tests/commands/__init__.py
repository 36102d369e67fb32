"""Tests of `pecft_jax.commands`."""
