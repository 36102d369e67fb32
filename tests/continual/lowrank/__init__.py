"""Tests of `pecft_jax.continual.lowrank`."""
