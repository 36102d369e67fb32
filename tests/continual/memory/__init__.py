"""Tests of `pecft_jax.continual.memory`."""
