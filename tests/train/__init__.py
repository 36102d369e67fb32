"""Tests of `pecft_jax.train`."""
