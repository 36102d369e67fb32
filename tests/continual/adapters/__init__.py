"""Tests of `pecft_jax.continual.adapters`."""
