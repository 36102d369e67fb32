"""Mixtures of adapters: experts of a branch, weighted for each example by a router."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.continual.adapters.slices import need_adapters
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta, Read
from pecft_jax.typing import Array, Backbone, PeftTransform


class Expert(NamedTuple):
  """An adapter with its column of the router."""

  adapter: BottleneckDelta
  column: Array  # [D], zeros at init.
  bias: Array  # [], zero at init.


class Mixture(NamedTuple):
  """E experts of a block, stacked on a leading axis, of which some are in use."""

  experts: Expert  # [E, ...]
  active: Array  # [E] bool


# The argument of a sublayer site that is read.
ARGUMENT: Mapping[str, int] = {'normed': 0, 'residual': 1}


def mixed(
  peft: PeftTransform, backbone: Backbone, slots: dict[str, int], read: Read = 'normed'
) -> PeftTransform:
  """Experts at each site of an adapter, mixed for each example by its mean token.

  Args:
    peft: what an expert is.
    backbone: that the transform is put on.
    slots: as `slots_of` gives them.
    read: of the router: the branch's input after its norm, or before it.
  """
  run_one = peft.intercept
  assert run_one is not None

  def init(key, sites, params):
    def stacked(p, a):
      return jnp.zeros((slots[p], *a.shape), a.dtype)

    width = backbone.width
    one = lambda adapter: Expert(adapter, jnp.zeros(width), jnp.zeros(()))
    return {
      p: Mixture(
        jax.tree.map(lambda a, p=p: stacked(p, a), one(adapter)), jnp.zeros(slots[p], bool)
      )
      for p, adapter in peft.init(key, sites, params).items()
    }

  def intercept(delta, site, next_fn, *args):
    if site.kind != 'sublayer' or site.path not in delta:
      return next_fn(*args)
    mixture, y = delta[site.path], next_fn(*args)
    gate = gates(mixture, args[ARGUMENT[read]]).astype(y.dtype)

    def one(adapter):
      # An adapter reads what goes into the branch or what comes out, and adds to it.
      return run_one({site.path: adapter}, site, lambda *_: y, *args) - y

    return y + weighted(one, mixture.experts.adapter, gate)

  return PeftTransform(init, intercept)


def weighted(one: Callable[[Any], Array], experts: Any, gate: Array) -> Array:
  """The sum of what experts add to a branch, each times its weight [B, T, D].

  Args:
    one: `(expert) -> [B, T, D]`
    experts: a pytree with leading axis E.
    gate: [B, E], in the dtype of the branch.
  """

  def add(total, expert):
    each, weight = expert
    return total + weight[:, None, None] * one(each), None

  # Experts are recomputed in the backward pass: only their common input is stored.
  add = jax.checkpoint(add, prevent_cse=False)
  first = jax.eval_shape(one, jax.tree.map(lambda a: a[0], experts))
  return jax.lax.scan(add, jnp.zeros(first.shape, first.dtype), (experts, gate.T))[0]


def gates(mixture: Mixture, x: Array) -> Array:
  """The weight of each expert for each example [B, E], of tokens [B, T, D]; 0 of unused ones."""
  experts, active = mixture.experts, mixture.active
  mean = x.astype(jnp.float32).mean(1)
  scores = jnp.matmul(mean, experts.column.T, precision='highest') + experts.bias
  return jax.nn.softmax(jnp.where(active, scores, -1e9)) * active


def mean_token(args: Sequence[Array], read: Read) -> Array:
  """The mean of what is read at a sublayer site [B, D] float32, without gradient."""
  return jax.lax.stop_gradient(args[ARGUMENT[read]]).astype(jnp.float32).mean(1)


def slots_of(backbone: Backbone, peft: PeftTransform, experts: int, growing: int) -> dict[str, int]:
  """The maximum number of experts of each adapted branch, by path.

  Args:
    backbone: that the transform is put on.
    peft: what an expert is.
    experts: maximum number in one block.
    growing: number of last blocks that have room for more than one.

  Raises:
    ValueError: for a transform other than bottleneck adapters without dropout, or one in none of
      the growing blocks.
  """
  delta = need_adapters('SEMA', backbone, peft)
  if peft.with_dropout is not None:
    raise ValueError('SEMA mixes adapters without dropout, got one with dropout')
  layer = {spec.site.path: spec.site.layer or 0 for spec in backbone.sites}
  first = backbone.depth - growing
  if all(layer[path] < first for path in delta):
    raise ValueError(
      f'expected adapters in the last {growing} of {backbone.depth} blocks, which may grow; got '
      f'them in blocks {sorted({layer[path] for path in delta})}'
    )
  return {path: experts if layer[path] >= first else 1 for path in delta}


def with_new(bank: Any, new: Any, at: Array) -> Any:
  """A bank [E, ...] with a tree in the slots `at` [E] bool."""

  def put(old: Array, one: Array) -> Array:
    return jnp.where(at.reshape(-1, *[1] * one.ndim), one, old)

  return jax.tree.map(put, bank, new)
