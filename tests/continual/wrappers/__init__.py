"""Tests of `pecft_jax.continual.wrappers`."""
