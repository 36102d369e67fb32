"""Tests of `pecft_jax.backbones.families.vit`."""
