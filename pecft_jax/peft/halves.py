"""Trainable and frozen halves of a pytree, and optimizers that touch one of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pecft_jax.paths import map_named, matches, matching
from pecft_jax.typing import Array, Kept, Params

Mask = Any  # A prefix of a tree with bools, or arrays of bools, as leaves.


def mask_of(pattern: str, tree: Params) -> Mask:
  """True at the leaves whose path matches.

  Args:
    pattern: regex searched in the leaf path.
    tree: any pytree with string keys.

  Raises:
    ValueError: if the pattern matches no leaf.

  >>> import jax.numpy as jnp
  >>> mask_of('bias', {'kernel': jnp.ones(2), 'bias': jnp.ones(2)})
  {'bias': True, 'kernel': False}
  """
  matching(pattern, tree)
  return map_named(lambda name, _: matches(pattern, name), tree)


def trained(tree: Params) -> Mask:
  """True except for what is `Kept`: a prefix of the tree's structure."""
  is_kept = lambda node: isinstance(node, Kept)
  return jax.tree.map(lambda node: not is_kept(node), tree, is_leaf=is_kept)


def split_kept(tree: Params) -> tuple[Params, Params]:
  """Splits a tree into (trained, kept); `combine` puts them together again.

  Whatever differentiates a method differentiates the first half alone.

  Args:
    tree: of parameters, with `Kept` nodes.

  Example:
    >>> import jax.numpy as jnp
    >>> from pecft_jax.typing import Kept
    >>> active, kept = split_kept({'a': jnp.ones(2), 'mask': Kept(jnp.arange(2))})
    >>> active['mask'], kept['a']
    (Kept(value=None), None)
  """
  return partition(tree, trained(tree))


def partition(tree: Params, mask: Mask) -> tuple[Params, Params]:
  """Splits a tree into (trainable, frozen), each with None where the other has a leaf.

  Args:
    tree: any pytree.
    mask: the same structure, or a prefix of it, with a bool for each leaf.

  Raises:
    ValueError: if the mask has arrays: half a leaf cannot be split off.

  >>> partition({'a': 1.0, 'b': 2.0}, {'a': True, 'b': False})
  ({'a': 1.0, 'b': None}, {'a': None, 'b': 2.0})
  """
  for leaf in jax.tree.leaves(mask):
    if not _whole(leaf):
      raise ValueError(f'partition() needs one bool for each leaf, got {type(leaf).__name__}')
  return _selected(mask, tree), _selected(jax.tree.map(lambda m: not m, mask), tree)


def combine(first: Params, second: Params) -> Params:
  """The inverse of `partition`, in either order.

  Args:
    first: a tree with None where `second` has a leaf.
    second: a tree of the same structure with None where `first` has a leaf.

  Raises:
    ValueError: if both have a leaf at the same place.

  >>> combine({'a': 1.0, 'b': None}, {'a': None, 'b': 2.0})
  {'a': 1.0, 'b': 2.0}
  """

  def pick(a: Any, b: Any) -> Any:
    if a is not None and b is not None:
      raise ValueError('both halves have a leaf at the same place')
    return b if a is None else a

  return jax.tree.map(pick, first, second, is_leaf=lambda leaf: leaf is None)


def masked(tx: optax.GradientTransformation, mask: Mask) -> optax.GradientTransformation:
  """An optimizer that cannot touch anything outside a mask.

  Frozen leaves are not shown to the inner optimizer: it keeps no moments for
  them. Of leaves that are frozen in part it sees gradients and values with
  zeros there, so that no moment, norm or weight decay comes from them either.

  Args:
    tx: any optax transformation.
    mask: a prefix of the parameters' structure; leaves are bools, or arrays of
      bools that broadcast against the parameters.

  >>> import jax.numpy as jnp
  >>> tx = masked(optax.sgd(0.5), {'body': False, 'head': True})
  >>> params = {'body': jnp.ones(1), 'head': jnp.ones(1)}
  >>> updates, _ = tx.update(params, tx.init(params), params)
  >>> float(updates['body'][0]), float(updates['head'][0])
  (0.0, -0.5)
  """
  tx = optax.with_extra_args_support(tx)

  def init(params):
    return tx.init(_selected(mask, params))

  def update(updates, state, params=None, **extra):
    inner = None if params is None else _selected(mask, params)
    new, state = tx.update(_selected(mask, updates), state, inner, **extra)

    def fill(m: Any, old: Params, new: Params) -> Params:
      if not _whole(m):
        return jax.tree.map(lambda a: _zeroed(m, a), new)
      return new if m else jax.tree.map(jnp.zeros_like, old)

    return jax.tree.map(fill, mask, updates, new), state

  return optax.GradientTransformationExtraArgs(init, update)


def _whole(m: Any) -> bool:
  return isinstance(m, bool | np.bool_)


def _zeroed(m: Array, leaf: Array) -> Array:
  return jnp.where(m, leaf, jnp.zeros((), leaf.dtype))


def _selected(mask: Mask, tree: Params) -> Params:
  """The tree with None for frozen leaves and zeros for frozen elements."""

  def keep(m: Any, part: Params) -> Params:
    if not _whole(m):
      return jax.tree.map(lambda leaf: _zeroed(m, leaf), part)
    return part if m else jax.tree.map(lambda _: None, part)

  return jax.tree.map(keep, mask, tree)
