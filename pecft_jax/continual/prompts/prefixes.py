"""Prefixes in some blocks of a backbone, for methods that make or choose them per example."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.peft.compose import at_layers
from pecft_jax.peft.leaves import stacks_of
from pecft_jax.peft.tokens.prefix import prefix
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Backbone, Key, PeftTransform


@recorded
def prefixes_at(layers: Sequence[int], length: int) -> PeftTransform:
  """Learned keys and values, P of each, before those of the attention of some blocks."""
  return at_layers(prefix(r'attn$', length), layers)


def layers_of(
  backbone: Backbone, wanted: Sequence[int] | None, published: Sequence[int]
) -> list[int]:
  """The wanted blocks, or those of the published ones that the backbone has, at least its last one.

  Args:
    backbone: with blocks.
    wanted: numbers of blocks; None for the published ones.
    published: numbers of blocks.

  Raises:
    ValueError: for a backbone without blocks.
  """
  if wanted is not None:
    return list(wanted)
  stacks = stacks_of(backbone.sites)
  if not stacks:
    raise ValueError(
      f'prefixes stand in the attention of blocks, and {backbone.name} has no blocks'
    )
  there = min(stacks.values(), key=len)
  return [layer for layer in published if layer in there] or there[-1:]


def drawn(tree: Any, key: Key, draw: Callable[[Key, tuple[int, ...]], Array]) -> Any:
  """A tree of the same shapes, each leaf drawn by `(key, shape) -> array`. Consumes the key."""
  leaves, treedef = jax.tree.flatten(tree)
  keys = jax.random.split(key, max(len(leaves), 1))
  new = [draw(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=False)]
  return jax.tree.unflatten(treedef, new)


def hundredth(key: Key, shape: tuple[int, ...]) -> Array:
  """Uniform in 0..0.01, as google-research/l2p draws prompts and keys."""
  return jax.random.uniform(key, shape, maxval=0.01)


def room_for(tasks: int, tree: Any) -> Any:
  """Zeros [T, ...] for a tree per task."""
  return jax.tree.map(lambda leaf: jnp.zeros((tasks, *leaf.shape), leaf.dtype), tree)


def with_slot(bank: Any, index: Array, new: Any) -> Any:
  """A bank [T, ...] with a tree in one of its slots; differentiable in the tree."""
  return jax.tree.map(lambda room, leaf: room.at[index].set(leaf), bank, new)
