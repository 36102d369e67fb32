"""EVA: LoRA that starts from the principal directions of what arrives at each layer (Paischer et
al., 2024, arXiv:2410.07170).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.paths import matches
from pecft_jax.peft.input_moments import InputMoments, no_inputs, tap_at, with_inputs
from pecft_jax.peft.lowrank.lora import LoraDelta, init_lora, lora_scale, low_rank
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import with_signs
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Calibration, Delta, PeftTransform


@about(
  'transform',
  'low-rank',
  Paper('Parameter efficient fine-tuning via explained variance adaptation', '2410.07170'),
  tiny=lambda: eva(rank=1, examples=6),
)
@recorded
def eva(
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  alpha: float | None = None,
  *,
  rho: float = 2.0,
  dropout: float = 0.0,
  examples: int | None = None,
) -> PeftTransform:
  """Adds a low-rank product whose A is read off the task's data, and so are the ranks.

  The columns of A are principal directions of the inputs x of a site, of all tokens; B is zero. All
  sites together have r directions for each of them: those that explain the largest share of the
  variance at their site, at most rho x r of one site, and maybe none. The scale is alpha / r
  everywhere, as with `adjust_scaling_factors` of Hugging Face's peft.

  Shapes do not depend on the data: A and B have room for rho x r, and what a site does not use is
  zero in both. Then its gradient is zero, too, and an optimizer leaves it. Before the calibration,
  or without one, it is LoRA of rank r.

  The pass takes a forward pass of each batch, and holds a matrix [d_in, d_in] for each site; it is
  followed by an eigendecomposition of each. Hugging Face's peft has an incremental decomposition
  that is cut to rho x r directions after each batch, and stops early; with one batch the two are
  equal. Padding of texts is not left out here, and directions are not divided by their deviation
  (`whiten`, off there by default).

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1, of the sites on average.
    alpha: the update is scaled by alpha / r; 2 r by default.
    rho: at least 1; with 1 all sites have rank r.
    dropout: share of the entries of x that A does not see in training.
    examples: of the task's, for the directions; all of them by default.

  Raises:
    ValueError: for a rank or a number of examples below 1, a rho below 1, or a dropout outside
      [0, 1); at init, where rho x r is above the inputs of a site.

  >>> import jax
  >>> from pecft_jax.peft import eva
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = eva(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].a.shape
  (96, 8)
  """
  scale = lora_scale(rank, alpha, rank_stabilised=False)
  at_least(1, rho=rho, examples=examples)
  most = round(rho * rank)

  def init_one(key, spec, weights):
    d_in, d_out = weights.main.shape
    if most > d_in:
      raise ValueError(
        f'{spec.site.path}: expected rho x rank of at most {d_in}, its inputs, got {most}'
      )
    a, _ = init_lora(key, weights, rank)
    return LoraDelta(jnp.pad(a, [(0, 0), (0, most - rank)]), jnp.zeros((most, d_out)))

  def run(delta, next_fn, x, w, b, drop=no_drop):
    return next_fn(x, w, b) + low_rank(delta, drop(x)) * jnp.asarray(scale, x.dtype)

  def update(delta, w):
    del w
    return scale * jnp.matmul(delta.a, delta.b, precision='highest')

  def watch(site, args, out):
    del out
    return args[0] if site.kind == 'linear' and matches(pattern, site.path) else None

  def empty(delta: Delta, weights: Mapping[str, Any]) -> dict[str, InputMoments]:
    del weights
    return {path: no_inputs(leaf.a.shape[0]) for path, leaf in delta.items()}

  def add(
    statistics: dict[str, InputMoments], taps: dict[str, Any], valid: Array
  ) -> dict[str, InputMoments]:
    return {path: with_inputs(old, tap_at(path, taps), valid) for path, old in statistics.items()}

  def finish(delta: Delta, statistics: dict[str, InputMoments]) -> Delta:
    found = {path: principal(statistics[path].scatter, most) for path in sorted(delta)}
    used = spread([share for _, share in found.values()], rank * len(found))
    return {
      path: LoraDelta(directions * mine, jnp.zeros_like(delta[path].b))
      for (path, (directions, _)), mine in zip(found.items(), used, strict=True)
    }

  each = per_site('linear', pattern, init_one, run, dropout=dropout, update=update)
  return each._replace(calibrate=Calibration(watch, empty, add, finish, examples=examples))


def principal(scatter: Array, count: int) -> tuple[Array, Array]:
  """The leading eigenvectors [d, count] of a scatter matrix, and their shares of the variance."""
  values, vectors = jnp.linalg.eigh(scatter)
  total = jnp.maximum(jnp.trace(scatter), jnp.finfo(jnp.float32).tiny)
  return with_signs(vectors[:, ::-1][:, :count]), values[::-1][:count] / total


def spread(shares: list[Array], budget: int) -> Array:
  """Which directions of which site are used, [sites, count] of 0 and 1: those of largest share.

  >>> spread([jnp.array([0.5, 0.4]), jnp.array([0.3, 0.1])], 2).tolist()
  [[1.0, 1.0], [0.0, 0.0]]
  """
  table = jnp.stack(shares)
  order = jnp.argsort(-table.reshape(-1), stable=True)
  return jnp.zeros(table.size).at[order[:budget]].set(1).reshape(table.shape)
