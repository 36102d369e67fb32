"""RoSA: a low-rank and a sparse update side by side (Nikdan et al., 2024, arXiv:2401.04679)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.about import Paper, about
from pecft_jax.peft.lowrank.lora import LoraDelta, init_lora, lora_scale, low_rank
from pecft_jax.peft.selective.fish import scattered
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import check_below_size
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Calibration, Delta, Kept, PeftTransform


class RosaDelta(NamedTuple):
  """y = x (W + scale A B + S), with K entries of S that are not zero."""

  AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out')}

  a: Array  # [d_in, r], as of LoRA.
  b: Array  # [r, d_out], zeros at init.
  values: Array  # [K], zeros at init.
  index: Kept  # [K] int32, places in the flat W; spread evenly before the calibration.


@about(
  'transform',
  'low-rank',
  Paper('RoSA: accurate parameter-efficient fine-tuning via robust adaptation', '2401.04679'),
  tiny=lambda: rosa(rank=2, density=0.05, examples=6),
)
@recorded
def rosa(
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  alpha: float | None = None,
  *,
  density: float = 0.006,
  examples: int | None = None,
) -> PeftTransform:
  """Adds a low-rank product and a sparse matrix at each matching linear site.

  W' = W + scale A B + S. The places of S are chosen at each site by itself, before a fresh
  delta is trained: the K = density x d_in x d_out with the largest G = sum over batches of the
  squared gradient with respect to W; then A, B and the entries of S are trained together. The
  paper trains A and B alone for a while first; here the gradients are those at the start.

  The pass takes a forward and a backward pass of each batch, and holds G and one gradient, each
  as large as W at the sites in float32. An update forms S and its gradient, [d_in, d_out], at each
  site; moments are of r (d_in + d_out) + K numbers.

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1.
    alpha: the product is scaled by alpha / r; 2 r by default.
    density: share of the entries of each weight that S has, in (0, 1].
    examples: of the task's, for G; all of them by default.

  Raises:
    ValueError: for a rank below 1, a density outside (0, 1], or fewer than one example; at
      init, for a rank above both sides of a weight.

  >>> import jax
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> delta = rosa('attn/q$').init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].values.shape  # Of 96 x 96.
  (55,)
  """
  scale = lora_scale(rank, alpha, rank_stabilised=False)
  if not 0 < density <= 1 or (examples is not None and examples < 1):
    raise ValueError(
      f'expected a density in (0, 1] and at least one example, got {density} and {examples}'
    )

  def init_one(key, spec, weights):
    check_below_size(spec.site.path, weights.main, rank)
    size = weights.main.size
    count = max(1, round(density * size))
    index = (np.arange(count) * size // count).astype(np.int32)
    a, b = init_lora(key, weights, rank)
    return RosaDelta(a, b, jnp.zeros(count), Kept(jnp.asarray(index)))

  def run(delta, next_fn, x, w, b):
    y = next_fn(x, w + scattered(delta.values, delta.index.value, w), b)
    return y + low_rank(LoraDelta(delta.a, delta.b), x) * jnp.asarray(scale, x.dtype)

  def update(delta, w):
    low = scale * jnp.matmul(delta.a, delta.b, precision='highest')
    return low + scattered(delta.values, delta.index.value, w)

  def gradients(delta: Delta) -> Sequence[str]:
    return sorted(delta)

  def empty(delta: Delta, weights: Mapping[str, Any]) -> Any:
    del delta
    return {path: jnp.zeros(w.shape) for path, w in weights.items()}

  def add(sums: Any, taps: dict[str, Any], valid: Array) -> Any:
    del valid  # Rows that only fill up are not in the mean whose gradient it is.
    return {path: old + jnp.square(taps[f'gradient:{path}']) for path, old in sums.items()}

  def finish(delta: Delta, sums: Any) -> Delta:
    def one(leaf: RosaDelta, g: Array) -> RosaDelta:
      index = jnp.sort(jax.lax.top_k(g.reshape(-1), leaf.values.shape[0])[1])
      return leaf._replace(index=Kept(index.astype(jnp.int32)))

    return {path: one(leaf, sums[path]) for path, leaf in delta.items()}

  calibrate = Calibration(None, empty, add, finish, gradients=gradients, examples=examples)
  each = per_site('linear', pattern, init_one, run, update=update)
  return each._replace(calibrate=calibrate)
