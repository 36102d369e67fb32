"""Tests of `pecft_jax.continual.statistics`."""
