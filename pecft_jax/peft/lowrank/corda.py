"""CorDA: the part of each weight that matters most, or least, for given inputs is trained (Yang et
al., 2024, arXiv:2406.05223).
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.paths import matches
from pecft_jax.peft.input_moments import (
  InputMoments,
  no_inputs,
  second_moment,
  tap_at,
  with_inputs,
)
from pecft_jax.peft.lowrank.pissa import balanced, from_start, part_scale, trained_part
from pecft_jax.peft.svd import leading_part, trailing_part
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Calibration, Delta, PeftTransform

PARTS = {'instruction': leading_part, 'knowledge': trailing_part}


class CordaStatistics(NamedTuple):
  """Of one site."""

  inputs: InputMoments
  w: Array  # [d_in, d_out], its weight.


@about(
  'transform',
  'low-rank',
  Paper(
    'CorDA: context-oriented decomposition adaptation of large language models for task-aware '
    'parameter-efficient fine-tuning',
    '2406.05223',
  ),
  tiny=lambda: corda(rank=2, examples=6),
)
@recorded
def corda(
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  alpha: float | None = None,
  *,
  mode: Literal['instruction', 'knowledge'] = 'instruction',
  damping: float = 0.01,
  dropout: float = 0.0,
  examples: int | None = 256,
) -> PeftTransform:
  """Trains a part of each weight that is found by the inputs of its layer.

  With C the mean of x x^T over all tokens that arrive at a site, C W = U S V^T and
  W = C^-1 U S V^T. As in `pissa`, A_0 = C^-1 U sqrt(S / scale) and B_0 = sqrt(S / scale) V^T of r
  singular values are trained, and the rest of W is frozen: the function is the same at init. In the
  mode `instruction` they are the r largest, what the task's inputs excite most; in the mode
  `knowledge` the r smallest, which leaves most of what the model does with these inputs as it is.
  There the inputs should be of what is to be kept, and not of the task: see `calibrated`. Each site
  stores 2 r (d_in + d_out) numbers, half of them trained. Before the calibration, or without one,
  it is `pissa` or `milora`.

  C is divided by the mean of its diagonal, and `damping` is added to it. Hugging Face's peft
  divides the inputs of each batch by their largest entry instead, and doubles the damping until
  C^-1 is accurate in float32. With one batch, A_0 B_0 is that of theirs, and A_0 and B_0 differ by
  a factor.

  The pass takes a forward pass of each batch, and holds d_in (d_in + d_out) numbers for each site.

  Args:
    pattern: regex searched in the site path.
    rank: r, from 1 to the smaller side of the weight.
    alpha: both products are scaled by alpha / r; r by default.
    mode: which end of the decomposition is trained.
    damping: added to the diagonal of C, positive.
    dropout: share of the entries of x that A does not see in training.
    examples: of the task's, for C; None for all of them.

  Raises:
    ValueError: for a rank or a number of examples below 1, an alpha or a damping that is not
      positive, another mode, or a dropout outside [0, 1); at init, for a rank above the smaller
      side of a weight.

  >>> import jax
  >>> from pecft_jax.peft import corda
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = corda(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].a.shape
  (96, 4)
  """
  scale = part_scale(rank, alpha)
  above(0, damping=damping)
  at_least(1, examples=examples)
  part = PARTS[mode]

  def watch(site, args, out):
    del out
    return args[:2] if site.kind == 'linear' and matches(pattern, site.path) else None

  def empty(delta: Delta, weights: Mapping[str, Any]) -> dict[str, CordaStatistics]:
    del weights
    shape = lambda leaf: (leaf.a.shape[0], leaf.b.shape[1])
    return {
      path: CordaStatistics(no_inputs(leaf.a.shape[0]), jnp.zeros(shape(leaf)))
      for path, leaf in delta.items()
    }

  def add(
    statistics: dict[str, CordaStatistics], taps: dict[str, Any], valid: Array
  ) -> dict[str, CordaStatistics]:
    def one(path: str, old: CordaStatistics) -> CordaStatistics:
      x, w = tap_at(path, taps)
      return CordaStatistics(with_inputs(old.inputs, x, valid), w.astype(jnp.float32))

    return {path: one(path, old) for path, old in statistics.items()}

  def finish(delta: Delta, statistics: dict[str, CordaStatistics]) -> Delta:
    def one(path: str) -> Any:
      inputs, w = statistics[path]
      c = second_moment(inputs)
      size = jnp.maximum(jnp.trace(c) / len(c), jnp.finfo(jnp.float32).tiny)
      c = c / size + damping * jnp.eye(len(c))
      u, s, v = part(path, jnp.matmul(c, w, precision='highest'), rank)
      a, b = balanced(u, s, v, scale)
      return from_start(jax.scipy.linalg.solve(c, a, assume_a='pos'), b)

    return {path: one(path) for path in delta}

  of_weights = lambda key, path, w: balanced(*part(path, w, rank), scale)
  each = trained_part(pattern, of_weights, scale, dropout)
  return each._replace(calibrate=Calibration(watch, empty, add, finish, examples=examples))
