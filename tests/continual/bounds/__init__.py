"""Tests of `pecft_jax.continual.bounds`."""
