"""A delta of its own for each example of a batch, on one frozen model."""

from collections.abc import Callable
from typing import Any

import jax

from pecft_jax.peft.compose import take
from pecft_jax.typing import Array, Delta, Inputs, Params, PeftTransform


def per_example(
  apply: Callable[..., Any], peft: PeftTransform
) -> Callable[[Params, Inputs, Delta, Array], Any]:
  """`(params, inputs, bank, slots) -> outputs`: example i with the delta in slot `slots[i]`.

  Products with the frozen weights are of the whole batch, as with a single delta. Only those with
  the delta are of one example each, so the transform should be small beside the model: LoRA,
  adapters, prompts, scalings. It equals one example at a time.

  Args:
    apply: `(params, inputs, delta, *, peft) -> pytree`, as in `Backbone`; its outputs have a
      leading batch axis.
    peft: of one slot; the bank has a leading slot axis on every leaf, as `bank(peft, S)` makes it,
      or `jax.tree.map(lambda *leaves: jnp.stack(leaves), *deltas)`.

  Returns:
    A function of the model's weights, inputs [B, ...], the bank [S, ...] and slots [B] int32.
    Slots change with the data: neither they nor another bank of that size compile anything.

  Raises:
    ValueError: for a transform that replaces weights, of which every example would need a copy.

  >>> import jax.numpy as jnp
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.peft import bank, lora
  >>> model, peft = pretrained('vit_glyphs16'), lora(r'attn/q$', rank=2)
  >>> stacked = bank(peft, 3).init(jax.random.key(0), model.backbone.sites, model.params)
  >>> run = per_example(model.backbone.apply, peft)
  >>> images = jnp.zeros((2, 16, 16, 1))
  >>> run(model.params, images, stacked, jnp.array([2, 0])).pooled.shape
  (2, 96)
  """
  if peft.replace is not None:
    raise ValueError(
      'per_example: this transform, or a part of it, replaces weights of the model, and each '
      'example would need a copy of them; apply its slots one at a time'
    )

  def run(params: Params, inputs: Inputs, bank: Delta, slots: Array) -> Any:
    def one(example: Any, slot: Array) -> Any:
      alone = jax.tree.map(lambda leaf: leaf[None], example)
      out = apply(params, alone, take(bank, slot), peft=peft)
      return jax.tree.map(lambda leaf: leaf[0], out)

    return jax.vmap(one)(inputs, slots)

  return run
