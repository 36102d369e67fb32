"""Tests of `pecft_jax.backbones.families.decoder`."""
