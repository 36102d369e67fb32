"""Diff pruning: a change of all weights, with gates (Guo et al., 2021, arXiv:2012.07463).

Gates are hard-concrete variables (Louizos et al., 2018, arXiv:1712.01312).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.largest import check_search, check_share, largest
from pecft_jax.peft.leaves import change_leaves, matching_leaves, read_leaves
from pecft_jax.peft.noise import Noisy
from pecft_jax.peft.sites import site_key
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Kept, Key, Params, PeftTransform, SiteSpec

_LEAST = 1e-4  # Of the uniform noise, and of its distance from 1.


class DiffDelta(NamedTuple):
  """W + z * z_group * C for each leaf; all mappings are by leaf name."""

  change: dict[str, Array]  # C, zeros at init.
  alpha: dict[str, Array]  # Log odds of the gates z, in the shapes of C.
  group: dict[str, Array]  # [] each, log odds of a leaf's gate; empty without groups.
  mask: Kept  # bool, in the shapes of C; the gates once they are fixed.
  fixed: Kept  # [] int32, 1 once they are.


@about(
  'transform',
  'selective',
  Paper('Parameter-efficient transfer learning with diff pruning', '2012.07463'),
  tiny=lambda: diff_pruning('attn/(q|v)', share=0.1, start=1.0),
)
@recorded
def diff_pruning(
  pattern: str = '',
  share: float = 0.005,
  *,
  strength: float = 1.25e-7,
  grouped: bool = True,
  search: float = 0.5,
  start: float = 5.0,
  low: float = -1.5,
  high: float = 1.5,
) -> PeftTransform:
  """Learns a change of all weights and which of its entries to have, then trains these alone.

  W' = W + z z_g C. In training each gate is drawn for each update: with u uniform in (0, 1),
  z = clip(s (high - low) + low, 0, 1), s = sigmoid(alpha + log u - log(1 - u)). Predictions and
  merging use s = sigmoid(alpha). `grouped` (structured diff pruning) gives each leaf, a matrix or a
  bias, one more gate z_g; otherwise z_g = 1. The penalty is strength times the expected number of
  gates that are open, sum_i P(alpha_i) P(alpha_g), P(alpha) = sigmoid(alpha - log(-low / high)).

  In the second part of a task gates are fixed: the K = share x |theta| entries with the largest
  |z z_g C| among all leaves stay and are trained, all others are zero. In a next task all gates
  are open again at its start.

  C, alpha and one number a leaf are trained, 2 |theta| and more, zeros and `start` at init; the
  result has K entries. The authors train alpha with a rate of 0.1 and C with 1e-5, as
  `grouped(recipe, {'delta/(alpha|group)': 1e4})` does; their strength is for 335 million weights:
  for a smaller model divide 42 by the number of weights.

  Checked against the authors' code, but there the penalty adds one for a group's gate to those
  of its entries instead of multiplying them, predictions are made with the last gates drawn, and
  both parts are runs with a schedule of their own. Which of the penalties the paper has is
  unverified.

  Args:
    pattern: regex searched in the leaf path; all leaves by default.
    share: of the entries of these leaves that stay, in (0, 1].
    strength: weight of the penalty.
    grouped: whether each leaf has a gate of its own.
    search: share of a task's updates in the first part, in (0, 1).
    start: alpha at init.
    low: below 0, what a gate is stretched to before it is clipped.
    high: above 1.

  Raises:
    ValueError: for numbers out of their range; at init, if the pattern matches no leaf.

  >>> from pecft_jax.backbones import pretrained
  >>> model, transform = pretrained('vit_glyphs16'), diff_pruning('block_0/attn/q', strength=1.0)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta.change['block_0/attn/q/kernel'].shape, delta.group['block_0/attn/q/kernel'].shape
  ((96, 96), ())
  >>> round(float(transform.penalty(delta) / (96 * 97)), 3)  # Nearly all gates are open.
  0.987
  """
  check_share(share)
  check_search(search)
  at_least(0, strength=strength)
  if not (low < 0 and high > 1):
    raise ValueError(f'expected low < 0 and high > 1, got low={low} and high={high}')
  shift = math.log(-low / high)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> DiffDelta:
    del key  # The noise is that of the updates.
    leaves = read_leaves(params, sites)
    names = matching_leaves(pattern, leaves)
    shapes = {name: jax.eval_shape(leaves[name]).shape for name in names}
    filled = lambda make: {name: make(shape) for name, shape in shapes.items()}
    opened = lambda shape: jnp.full(shape, start, jnp.float32)
    group = filled(lambda shape: opened(())) if grouped else {}
    mask = filled(lambda shape: jnp.ones(shape, bool))
    fixed = jnp.zeros((), jnp.int32)
    return DiffDelta(filled(jnp.zeros), filled(opened), group, Kept(mask), Kept(fixed))

  def gates(delta: DiffDelta, key: Key | None) -> dict[str, Array]:
    def drawn(kind: str, name: str, alpha: Array) -> Array:
      if key is not None:
        alpha = alpha + logistic(site_key(key, f'{kind} {name}'), alpha.shape)
      return jnp.clip(jax.nn.sigmoid(alpha) * (high - low) + low, 0, 1)

    def one(name: str) -> Array:
      z = drawn('alpha', name, delta.alpha[name])
      z = z * drawn('group', name, delta.group[name]) if grouped else z
      return jnp.where(delta.fixed.value > 0, delta.mask.value[name], z)

    return {name: one(name) for name in delta.alpha}

  def replace(delta: DiffDelta | Noisy, params: Params) -> Params:
    own, key = (delta.leaf, delta.key) if isinstance(delta, Noisy) else (delta, None)
    z = gates(own, key)

    def plus(name: str) -> Callable[[Array], Array]:
      return lambda leaf: leaf + z[name] * own.change[name]

    return change_leaves({name: plus(name) for name in z}, params)

  def penalty(delta: DiffDelta) -> Array:
    is_open = lambda alpha: jax.nn.sigmoid(alpha - shift)
    group = {name: is_open(alpha) for name, alpha in delta.group.items()}
    total = sum(
      (is_open(alpha).sum() * group.get(name, 1.0) for name, alpha in delta.alpha.items()),
      jnp.zeros(()),
    )
    return jnp.where(delta.fixed.value > 0, 0.0, strength * total)

  def after(delta: DiffDelta, grads: Delta, progress: Array) -> DiffDelta:
    del grads
    late = progress >= search

    def opened(alphas: dict[str, Array]) -> dict[str, Array]:
      return jax.tree.map(lambda alpha: jnp.full_like(alpha, start), alphas)

    def masked(change: dict[str, Array], mask: dict[str, Array]) -> dict[str, Array]:
      return jax.tree.map(lambda each, stays: jnp.where(stays, each, 0), change, mask)

    def fix() -> DiffDelta:
      change = jax.tree.map(jnp.multiply, gates(delta, None), delta.change)
      mask = largest(jax.tree.map(jnp.abs, change), share)
      fixed = jnp.ones((), jnp.int32)
      return DiffDelta(
        masked(change, mask), opened(delta.alpha), opened(delta.group), Kept(mask), Kept(fixed)
      )

    def go_on() -> DiffDelta:
      # The optimizer's moments move what has no gradient any more.
      still = DiffDelta(
        masked(delta.change, delta.mask.value),
        opened(delta.alpha),
        opened(delta.group),
        delta.mask,
        delta.fixed,
      )
      moved = delta._replace(fixed=Kept(jnp.zeros((), jnp.int32)))
      return jax.tree.map(lambda a, b: jnp.where(late, a, b), still, moved)

    return jax.lax.cond(late & (delta.fixed.value == 0), fix, go_on)

  return PeftTransform(
    init,
    replace=replace,
    merge=replace,
    with_dropout=Noisy,
    after=after,
    penalty=penalty,
    selective=True,
  )


def logistic(key: Key, shape: tuple[int, ...]) -> Array:
  """Logistic noise log u - log(1 - u), u uniform. Consumes the key."""
  u = jax.random.uniform(key, shape, minval=_LEAST, maxval=1 - _LEAST)
  return jnp.log(u) - jnp.log1p(-u)
