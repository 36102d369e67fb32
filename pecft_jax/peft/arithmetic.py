"""Several deltas of one transform as one: sums of any rank, and merges by size and sign.

The functions compose. With `few = [pruned(each, 0.2) for each in deltas]`, `weighted(few, weights)`
is what Hugging Face's peft calls `magnitude_prune` and `elected(few, weights)` its `ties`; with
`dropped` in place of `pruned` they are its `dare_linear` and `dare_ties`, and
`recompressed(concatenated(deltas, weights), rank)` is its `svd`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pecft_jax.paths import named_leaves
from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.peft.lowrank.lora import LoraDelta
from pecft_jax.typing import Array, Delta, Key


def weighted(deltas: Sequence[Delta], weights: Sequence[float] | Array) -> Delta:
  """The weighted sum of each leaf; what is `Kept` is that of the first delta.

  Of LoRA the factors are summed, and (a + a')(b + b') has cross terms that no single delta has:
  `concatenated` sums the products.

  Args:
    deltas: of one transform, at least one.
    weights: [N], one for each.

  Raises:
    ValueError: for no delta, another number of weights, or deltas that differ in structure or
      shape.

  >>> of = lambda *x: {'a': jnp.array(x)}
  >>> weighted([of(1.0, 2.0), of(3.0, 0.0)], [1.0, 0.5])['a'].tolist()
  [2.5, 2.0]
  """
  return _each(deltas, weights, lambda slots, w: (w * slots).sum(0))


def elected(
  deltas: Sequence[Delta],
  weights: Sequence[float] | Array,
  by: Literal['total', 'frequency'] = 'total',
) -> Delta:
  """TIES merging without its first step: the sign of each entry is elected.

  Yadav et al., 2023, arXiv:2306.01708. With the sign g of an entry, the result is the sum of w_i
  times the entries of sign g, over the number of them. `pruned` is the first step.

  Args:
    deltas: of one transform, at least one.
    weights: [N], one for each; they do not vote.
    by: the sign of the sum of entries (`total`), or that of more of them (`frequency`).

  Raises:
    ValueError: as `weighted`, and for another election.

  >>> of = lambda *x: {'a': jnp.array(x)}
  >>> elected([of(3.0, 1.0), of(-1.0, 3.0)], [1.0, 1.0])['a'].tolist()
  [3.0, 2.0]
  """
  if by not in ('total', 'frequency'):
    raise ValueError(f"elected: expected by='total' or 'frequency', got {by!r}")

  def one(slots: Array, w: Array) -> Array:
    votes = slots if by == 'total' else jnp.sign(slots)
    agree = jnp.sign(slots) == jnp.where(votes.sum(0) >= 0, 1, -1)
    return jnp.where(agree, w * slots, 0).sum(0) / jnp.maximum(agree.sum(0), 1)

  return _each(deltas, weights, one)


def pruned(delta: Delta, density: float) -> Delta:
  """The largest entries of each leaf in magnitude; the others are zero.

  Args:
    delta: of any transform; what is `Kept` stays.
    density: the share of a leaf's entries that is left, in (0, 1]; rounded down to whole entries.

  Raises:
    ValueError: for a density outside (0, 1].

  >>> pruned({'a': jnp.array([1.0, -4.0, 2.0, 3.0])}, 0.5)['a'].tolist()
  [0.0, -4.0, 0.0, 3.0]
  """
  _check_density(density)

  def one(leaf: Array) -> Array:
    flat = leaf.reshape(-1)
    _, best = jax.lax.top_k(jnp.abs(flat), int(density * flat.size))
    return jnp.zeros_like(flat).at[best].set(flat[best]).reshape(leaf.shape)

  active, kept = split_kept(delta)
  return combine(jax.tree.map(one, active), kept)


def dropped(key: Key, delta: Delta, density: float) -> Delta:
  """DARE's first step: entries are dropped at random, and the others divided by the density.

  Yu et al., 2023, arXiv:2311.03099.

  Args:
    key: [], consumed.
    delta: of any transform; what is `Kept` stays.
    density: the probability that an entry is left, in (0, 1].

  Raises:
    ValueError: for a density outside (0, 1].

  >>> found = dropped(jax.random.key(0), {'a': jnp.ones(8)}, 0.5)['a']
  >>> sorted(set(found.tolist()))
  [0.0, 2.0]
  """
  _check_density(density)
  active, kept = split_kept(delta)
  leaves, structure = jax.tree.flatten(active)
  keys = jax.random.split(key, max(len(leaves), 1))
  left = [
    jnp.where(jax.random.bernoulli(k, density, leaf.shape), leaf / density, 0).astype(leaf.dtype)
    for k, leaf in zip(keys, leaves, strict=False)
  ]
  return combine(jax.tree.unflatten(structure, left), kept)


def concatenated(deltas: Sequence[Delta], weights: Sequence[float] | Array) -> Delta:
  """The weighted sum of LoRA products, exactly: ranks add up.

  At each site A = [A_1 .. A_N] and B = [w_1 B_1; ..; w_N B_N]. The transform of the result must
  have the scale of theirs: for `lora(rank=r, alpha=a)` that is `lora(rank=N * r, alpha=N * a)`.

  Args:
    deltas: of LoRA with one scale, at least one; they may differ in rank.
    weights: [N], one for each.

  Raises:
    ValueError: for no delta, another number of weights, or deltas that are not those of LoRA at
      the same sites.

  >>> a, b = jnp.ones((3, 1)), jnp.ones((1, 2))
  >>> both = concatenated([{'fc': LoraDelta(a, b)}, {'fc': LoraDelta(2 * a, b)}], [1.0, 0.5])
  >>> both['fc'].a.shape, (both['fc'].a @ both['fc'].b)[0].tolist()
  ((3, 2), [2.0, 2.0])
  """
  _check_number(deltas, weights)
  for delta in deltas:
    _check_lora(delta)
    if delta.keys() != deltas[0].keys():
      raise ValueError(f'deltas have other sites: {sorted(delta)} and {sorted(deltas[0])}')

  def one(parts: Sequence[LoraDelta]) -> LoraDelta:
    scaled = [w * part.b for w, part in zip(weights, parts, strict=True)]
    return LoraDelta(
      jnp.concatenate([part.a for part in parts], axis=-1), jnp.concatenate(scaled, axis=-2)
    )

  return {site: one([delta[site] for delta in deltas]) for site in deltas[0]}


def recompressed(delta: Delta, rank: int) -> Delta:
  """The best LoRA factors of a lower rank, in the sense of least squares.

  A B is cut to its largest singular values, as U sqrt(S) and sqrt(S) V^T, from QR decompositions of
  the factors: the product is never formed. The scale must stay: a transform `lora(rank=r, alpha=a)`
  becomes `lora(rank=rank, alpha=a * rank / r)`.

  Args:
    delta: of LoRA.
    rank: of the result, at least 1; at most that of the delta.

  Raises:
    ValueError: for a delta that is not of LoRA, or another rank.

  >>> wide = {'fc': LoraDelta(jnp.ones((3, 2)), jnp.ones((2, 4)))}
  >>> slim = recompressed(wide, 1)['fc']
  >>> slim.a.shape, bool(jnp.allclose(slim.a @ slim.b, 2.0, atol=1e-6))
  ((3, 1), True)
  """
  _check_lora(delta)

  def one(site: str, part: LoraDelta) -> LoraDelta:
    most = part.a.shape[-1]
    if not 1 <= rank <= most:
      raise ValueError(f'recompressed: expected a rank from 1 to {most} at {site!r}, got {rank}')
    q_a, r_a = jnp.linalg.qr(part.a.astype(jnp.float32))
    q_b, r_b = jnp.linalg.qr(part.b.astype(jnp.float32).swapaxes(-1, -2))
    u, s, v = jnp.linalg.svd(_exact(r_a, r_b.swapaxes(-1, -2)), full_matrices=False)
    size = jnp.sqrt(s[..., :rank])
    a = _exact(q_a, u[..., :rank]) * size[..., None, :]
    b = size[..., :, None] * _exact(v[..., :rank, :], q_b.swapaxes(-1, -2))
    # Factors that are narrower than the rank have fewer singular values.
    more = rank - size.shape[-1]
    pad = [(0, 0)] * (a.ndim - 2)
    a, b = jnp.pad(a, [*pad, (0, 0), (0, more)]), jnp.pad(b, [*pad, (0, more), (0, 0)])
    return LoraDelta(a.astype(part.a.dtype), b.astype(part.b.dtype))

  return {site: one(site, part) for site, part in delta.items()}


def _exact(a: Array, b: Array) -> Array:
  return jnp.matmul(a, b, precision='highest')


def _each(
  deltas: Sequence[Delta], weights: Sequence[float] | Array, one: Callable[[Array, Array], Array]
) -> Delta:
  """A function of each leaf's [N, ...] stack, and of the weights as [N, 1, ..]."""
  _check_number(deltas, weights)
  actives, kept = zip(*map(split_kept, deltas), strict=True)
  for other in actives[1:]:
    _check_alike(actives[0], other)

  def of(*leaves: Array) -> Array:
    w = jnp.asarray(weights, jnp.float32).reshape(-1, *[1] * leaves[0].ndim)
    return one(jnp.stack(leaves), w).astype(leaves[0].dtype)

  return combine(jax.tree.map(of, *actives), kept[0])


def _check_number(deltas: Sequence[Delta], weights: Sequence[float] | Array) -> None:
  if not deltas or len(deltas) != len(weights):
    raise ValueError(
      f'expected at least one delta and a weight for each, got {len(deltas)} and {len(weights)}'
    )


def _check_alike(one: Any, other: Any) -> None:
  shapes = lambda tree: {name: jnp.shape(leaf) for name, leaf in named_leaves(tree)}
  if (first := shapes(one)) != (second := shapes(other)):
    name = next(n for n in [*first, *second] if first.get(n) != second.get(n))
    raise ValueError(
      f'expected deltas of one transform: {name!r} is {first.get(name, "missing")} in one and '
      f'{second.get(name, "missing")} in another'
    )


def _check_lora(delta: Delta) -> None:
  kinds = {type(part).__name__ for part in delta.values()} if isinstance(delta, dict) else {'?'}
  if kinds != {'LoraDelta'}:
    raise ValueError(f'expected a delta of lora, {{site: LoraDelta}}, got parts {sorted(kinds)}')


def _check_density(density: float) -> None:
  if not 0 < density <= 1:
    raise ValueError(f'expected a density in (0, 1], got {density}')
