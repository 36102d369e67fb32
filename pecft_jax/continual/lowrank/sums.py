"""Sums of the low-rank updates of several tasks, in the weights of one forward pass."""

import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.continual.core import abstract_delta
from pecft_jax.peft.lowrank.lora import LoraDelta
from pecft_jax.peft.sites import per_site
from pecft_jax.typing import Backbone, PeftTransform


def is_lora(node: Any) -> bool:
  """Whether a node of a delta is the factors of one site: for `jax.tree.map(is_leaf=)`."""
  return isinstance(node, LoraDelta)


def need_lora(name: str, backbone: Backbone, peft: PeftTransform) -> dict[str, Any]:
  """The shapes of a transform's delta, if it has LoRA factors at every site.

  Args:
    name: of the method, for the message.
    backbone: frozen.
    peft: identified by the types of its delta.

  Returns:
    `{site path: LoraDelta of jax.ShapeDtypeStruct}`

  Raises:
    ValueError: if it has anything else.
  """
  shapes = abstract_delta(backbone, peft)
  leaves = list(shapes.values()) if isinstance(shapes, dict) else [shapes]
  if peft.update is None or not leaves or not all(map(is_lora, leaves)):
    kinds = sorted({type(leaf).__name__ for leaf in leaves})
    raise ValueError(
      f'{name} needs a transform whose delta is LoRA factors at every site, such as lora(...); '
      f'got a delta of {kinds or "nothing"}'
    )
  return shapes


def joined(slots: LoraDelta) -> LoraDelta:
  """The factors of all slots on the rank axis: one LoRA that is the sum of them.

  Args:
    slots: a [T, d_in, r], b [T, r, d_out].

  Returns:
    a [d_in, T r], b [T r, d_out].
  """
  a = jnp.moveaxis(slots.a, 0, -2)  # [d_in, T, r]
  b = slots.b  # [T, r, d_out]
  return LoraDelta(a.reshape(a.shape[0], -1), b.reshape(-1, b.shape[-1]))


def summed(peft: PeftTransform) -> PeftTransform:
  """The same LoRA over a bank of all slots, added up in the weights: its cost is constant."""

  def intercept(bank, site, next_fn, *args):
    if site.kind != 'linear' or site.path not in bank:
      return next_fn(*args)
    x, w, b = args
    assert peft.update is not None
    change = peft.update({site.path: joined(bank[site.path])}, site.path, w)
    return next_fn(x, w + change.astype(w.dtype), b)

  return PeftTransform(peft.init, intercept)


def added(paths: Iterable[str]) -> PeftTransform:
  """Adds a whole matrix [d_in, d_out] to the weights of linear sites; zeros at init.

  It holds the sum of any number of low-rank updates, at a size that does not grow.

  Args:
    paths: of the sites.
  """
  exactly = '|'.join(map(re.escape, paths))
  return per_site(
    'linear',
    f'^({exactly})$',
    init_one=lambda key, spec, weights: jnp.zeros(weights.main.shape),
    run=lambda change, next_fn, x, w, b: next_fn(x, w + change.astype(w.dtype), b),
    update=lambda change, w: change,
  )


def products(peft: PeftTransform, delta: Any) -> dict[str, Any]:
  """What a LoRA adds to the weights of its sites, scale included: `{site path: [d_in, d_out]}`."""
  assert peft.update is not None
  size = lambda each: jnp.zeros((each.a.shape[0], each.b.shape[1]))
  return {path: peft.update(delta, path, size(each)) for path, each in delta.items()}


def stored(bank: Any, delta: Any, index: jax.Array) -> Any:
  """A bank with a delta written into a slot."""
  return jax.tree.map(lambda slots, new: slots.at[index].set(new), bank, delta)
