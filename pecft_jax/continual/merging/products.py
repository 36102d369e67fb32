"""What is merged of a delta: its leaves, or of LoRA factors the products that they stand for."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from pecft_jax.continual.core import abstract_delta
from pecft_jax.continual.memory.symmetric import dot
from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.peft.lowrank.lora import LoraDelta
from pecft_jax.typing import Array, Backbone, Delta, PeftTransform

Of = Literal['leaves', 'products', 'dense']


def need_common(name: str, backbone: Backbone, peft: PeftTransform) -> None:
  """Checks that the deltas of different tasks have something in common that can be merged.

  Raises:
    ValueError: if the transform trains nothing of the backbone, or is calibrated.
  """
  if peft.calibrate is not None:
    raise ValueError(
      f'{name} needs a transform that trains the same places for each task: one that is calibrated '
      'chooses others by the data of each'
    )
  if not jax.tree.leaves(split_kept(abstract_delta(backbone, peft))[0]):
    raise ValueError(f'{name} needs a transform that trains something of the backbone')


def vector_of(delta: Delta, of: Of) -> Any:
  """What is merged of a delta, as a tree of arrays."""
  return split_kept(delta)[0] if of == 'leaves' else products(delta)


def moved(base: Delta, tau: Any, delta: Delta, of: Of) -> Delta:
  """`base` moved by the task vector `tau`: a delta, or matrices of `dense_sites`.

  What is `Kept`, and not merged, is that of `delta`.
  """
  new = jax.tree.map(jnp.add, vector_of(base, of), tau)
  if of == 'leaves':
    return combine(new, split_kept(delta)[1])
  return new if of == 'dense' else factors(new, delta)


def products(delta: Delta) -> dict[str, Array]:
  """A B [d_in, d_out] of each site, without the transform's scale."""
  return {site: dot(each.a, each.b) for site, each in delta.items()}


def factors(dense: dict[str, Array], like: Delta) -> Delta:
  """The best factors of the rank of a delta, by a singular value decomposition of each site.

  With P = U S V^T cut to r: A = U sqrt(S) and B = sqrt(S) V^T.
  """

  def one(whole: Array, old: LoraDelta) -> LoraDelta:
    rank = old.a.shape[1]
    u, s, v = jnp.linalg.svd(whole, full_matrices=False)
    found = min(rank, len(s))
    size = jnp.sqrt(s[:found])
    a, b = u[:, :found] * size, size[:, None] * v[:found]
    more = rank - found
    return LoraDelta(jnp.pad(a, [(0, 0), (0, more)]), jnp.pad(b, [(0, more), (0, 0)]))

  return {site: one(dense[site], old) for site, old in like.items()}


def dense_sites(peft: PeftTransform) -> PeftTransform:
  """The same transform over the products of its factors, which are added to the weights."""
  unit = LoraDelta(jnp.ones((1, 1)), jnp.ones((1, 1)))

  def intercept(dense, site, next_fn, *args):
    if site.kind != 'linear' or site.path not in dense:
      return next_fn(*args)
    x, w, b = args
    assert peft.update is not None
    scale = peft.update({site.path: unit}, site.path, jnp.ones((1, 1)))
    return next_fn(x, w + (scale * dense[site.path]).astype(w.dtype), b)

  def init(key, sites, params) -> Any:
    return products(peft.init(key, sites, params))

  return PeftTransform(init, intercept)
