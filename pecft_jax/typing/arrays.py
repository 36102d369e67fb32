"""Names for kinds of arrays and trees."""

from typing import Any

import jax

Array = jax.Array
Key = jax.Array
Params = Any  # A pytree of arrays: nested dicts with string keys.
Delta = Any  # The trainable pytree of a PEFT transform.
# What one batch feeds the model: images uint8 [B, H, W, C], token ids int32 [B, T], or a `Given`.
Inputs = Any
