"""LoRA-GA: LoRA that starts from the directions of the gradient of each weight (Wang et al., 2024,
arXiv:2407.05000).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.lowrank.lora import lora_scale
from pecft_jax.peft.lowrank.pissa import PissaDelta, from_start, trained_part
from pecft_jax.peft.starts import uniform
from pecft_jax.peft.svd import leading_part, with_signs
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Calibration, Delta, Key, PeftTransform


@about(
  'transform',
  'low-rank',
  Paper('LoRA-GA: low-rank adaptation with gradient approximation', '2407.05000'),
  tiny=lambda: lora_ga(r'attn/(q|k)$', rank=1, examples=6),
)
@recorded
def lora_ga(
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  alpha: float | None = None,
  *,
  gamma: float = 16.0,
  dropout: float = 0.0,
  examples: int | None = 256,
) -> PeftTransform:
  """Adds a low-rank product whose first update is near that of full fine-tuning.

  With G = U S V^T the gradient of the loss with respect to W [d_in, d_out], summed over examples
  before a fresh delta is trained, A_0 is c times the leading r columns of U, and B_0 is c times
  rows r to 2 r of V^T, with c = d_out^(1/4) / sqrt(gamma) (algorithm 1). W becomes
  (W - scale A_0 B_0) + scale A B: the function is the same at init. Each site stores
  2 r (d_in + d_out) numbers, half of them trained. Before the calibration, or without one, it is
  LoRA. Signs, which a decomposition leaves open, make the largest entry of each direction positive;
  where G has a rank below 2 r, the rows of B_0 that it has no direction for are zero.

  Hugging Face's peft multiplies B_0 also by the singular values of G, and A_0 not by c, so that the
  size of the start depends on that of the loss; directions are the same.

  The pass takes a forward and a backward pass of each batch, and holds G and one gradient, each as
  large as W at the sites in float32.

  Args:
    pattern: regex searched in the site path.
    rank: r, from 1 to half of the smaller side of the weight.
    alpha: both products are scaled by alpha / r; 2 r by default. The paper has alpha / sqrt(r).
    gamma: a larger one makes the start smaller.
    dropout: share of the entries of x that A does not see in training.
    examples: of the task's, for G; None for all of them.

  Raises:
    ValueError: for a rank or a number of examples below 1, an alpha or a gamma that is not
      positive, or a dropout outside [0, 1); at init, for 2 r above the smaller side of a weight.

  >>> import jax
  >>> from pecft_jax.peft import lora_ga
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = lora_ga(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].b.shape
  (4, 96)
  """
  scale = lora_scale(rank, alpha, rank_stabilised=False)
  above(0, gamma=gamma)
  at_least(1, examples=examples)

  def drawn(key: Key, path: str, w: Array) -> tuple[Array, Array]:
    if 2 * rank > min(w.shape):
      raise ValueError(
        f'{path}: rank {rank} is above half of the smaller side of its weight '
        f'[{w.shape[0]}, {w.shape[1]}]'
      )
    return uniform(key, w.shape[0], w.shape[1], rank)

  def gradients(delta: Delta) -> Sequence[str]:
    return sorted(delta)

  def empty(delta: Delta, weights: Mapping[str, Any]) -> dict[str, Array]:
    del delta
    return {path: jnp.zeros(w.shape) for path, w in weights.items()}

  def add(sums: dict[str, Array], taps: dict[str, Any], valid: Array) -> dict[str, Array]:
    # The gradients are of the mean over valid rows.
    return {path: old + valid.sum() * taps[f'gradient:{path}'] for path, old in sums.items()}

  def finish(delta: Delta, sums: dict[str, Array]) -> Delta:
    def one(path: str) -> PissaDelta:
      u, s, v = leading_part(path, sums[path], 2 * rank)
      size = (v.shape[1] ** 0.25) / gamma**0.5
      # Below this a direction is one of rounding.
      there = s[rank:] > jnp.finfo(jnp.float32).eps * max(sums[path].shape) * s[0]
      b = with_signs(v[rank:].T).T * there[:, None]
      return from_start(size * with_signs(u[:, :rank]), size * b)

    return {path: one(path) for path in delta}

  calibrate = Calibration(None, empty, add, finish, gradients=gradients, examples=examples)
  each = trained_part(pattern, drawn, scale, dropout)
  return each._replace(calibrate=calibrate)
