"""Which tokens a token attends to."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
  """A rule that says which keys each query attends to, instead of an array [B, T, T].

  Query i belongs to key `ahead` + i. It attends to all keys ahead, and of the others to those of
  real tokens; with `causal` to none after its own.

  Attributes:
    lengths: [B] int32, real tokens of each example, at least 1: pads follow them. None
      where there are no pads.
    causal: whether tokens attend to no later ones.
    ahead: keys without a query of their own, before all others.

  >>> Mask(jnp.array([2, 3]), causal=True).array(queries=3, keys=3).astype(int)[0].tolist()
  [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
  """

  lengths: Array | None = None
  causal: bool = dataclasses.field(default=False, metadata={'static': True})
  ahead: int = dataclasses.field(default=0, metadata={'static': True})

  def array(self, queries: int, keys: int) -> Array | None:
    """[B or 1, queries, keys] bool; None where every query attends to every key."""
    key = jnp.arange(keys) - self.ahead
    seen = None
    if self.causal:
      seen = (key <= jnp.arange(queries)[:, None])[None]
    if self.lengths is not None:
      real = (key < self.lengths[:, None])[:, None]
      seen = real if seen is None else seen & real
    return None if seen is None else jnp.broadcast_to(seen, (seen.shape[0], queries, keys))


def with_keys_ahead(mask: Any, count: int) -> Any:
  """A mask after keys that every query attends to were put before all others.

  Args:
    mask: a `Mask`, a bool array [..., Tq, T], or None.
    count: P, such keys.

  >>> with_keys_ahead(Mask(causal=True), 2).ahead
  2
  """
  if mask is None:
    return None
  if isinstance(mask, Mask):
    return dataclasses.replace(mask, ahead=mask.ahead + count)
  return jnp.concatenate([jnp.ones((*mask.shape[:-1], count), bool), mask], -1)


def with_tokens(mask: Any, lead: int, count: int) -> Any:
  """A mask after tokens were inserted that every token attends to, unless it is causal.

  They attend to one another, and to what the last token before them does.

  Args:
    mask: a `Mask`, a bool array [..., T, T], or None.
    lead: real tokens before the inserted ones.
    count: P, inserted tokens.

  >>> with_tokens(Mask(jnp.array([2, 3])), lead=1, count=4).lengths.tolist()
  [6, 7]
  """
  if mask is None:
    return None
  if isinstance(mask, Mask):
    lengths = None if mask.lengths is None else mask.lengths + count
    return dataclasses.replace(mask, lengths=lengths)
  first = mask[..., lead - 1 : lead, :] if lead else jnp.zeros_like(mask[..., :1, :])
  rows = jnp.broadcast_to(first, (*mask.shape[:-2], count, mask.shape[-1]))
  mask = jnp.concatenate([mask[..., :lead, :], rows, mask[..., lead:, :]], -2)
  columns = jnp.ones((*mask.shape[:-1], count), bool)
  return jnp.concatenate([mask[..., :lead], columns, mask[..., lead:]], -1)


def of_first_queries(mask: Any, rows: int | None) -> Any:
  """The mask of the leading queries alone: a `Mask`, a bool array [..., Tq, T], or None."""
  return mask if mask is None or isinstance(mask, Mask) else mask[..., :rows, :]
