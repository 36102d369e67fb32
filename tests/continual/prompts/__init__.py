"""Tests of `pecft_jax.continual.prompts`."""
