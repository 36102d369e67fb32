"""LoftQ: quantised weights and LoRA factors that together are near the weights (Li et al., 2023,
arXiv:2310.08659).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.arguments import at_least, checked
from pecft_jax.backbones.core.quantise import check_float, quantised
from pecft_jax.paths import shortened
from pecft_jax.peft.leaves import block_of
from pecft_jax.peft.lowrank.lora import LoraDelta, lora, lora_scale
from pecft_jax.peft.lowrank.pissa import balanced
from pecft_jax.peft.starting import starting_from
from pecft_jax.peft.svd import leading_part
from pecft_jax.peft.weights import read, write
from pecft_jax.typing import PeftTransform, Pretrained


class Loftq(NamedTuple):
  """A quantised model, and the transform that it is to be adapted with."""

  model: Pretrained
  peft: PeftTransform


@checked
def loftq(
  model: Pretrained,
  form: Literal['int8', 'nf4'],
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  alpha: float | None = None,
  *,
  iterations: int = 5,
  dropout: float = 0.0,
) -> Loftq:
  """Quantises a model so that LoRA starts by making up for what is lost.

  At each matching site the two steps alternate (algorithm 1): Q is the quantised W - scale A B, and
  A B the r leading parts of the decomposition of W - Q, over the scale. The other matrices of the
  blocks are quantised as `quantised` does it. The transform is `lora` that starts from these
  factors: with them the model is nearer to the one with float weights than the quantised one alone.

  Hugging Face's peft does not divide by the scale, so that it needs a scale of 1, and does one
  iteration by default.

  Args:
    model: with float weights.
    form: of the frozen matrices.
    pattern: regex searched in the site path; sites within blocks.
    rank: r, from 1 to the smaller side of the weight.
    alpha: the update is scaled by alpha / r; 2 r by default.
    iterations: how often both steps are done, at least 1.
    dropout: of `lora`.

  Raises:
    ValueError: for a rank or iterations below 1, an alpha that is not positive, a rank above the
      smaller side of a weight, a site outside of the blocks, or as `quantised`.

  >>> from pecft_jax.backbones import pretrained
  >>> wide = pretrained('vit_glyphs16')
  >>> model, peft = loftq(wide, 'nf4', 'block_0/attn/q$', rank=4, iterations=1)
  >>> delta = peft.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> bool((delta['block_0/attn/q'].b != 0).all())
  True
  """
  at_least(1, iterations=iterations)
  check_float(model)
  scale = lora_scale(rank, alpha, rank_stabilised=False)
  plain = lora(pattern, rank, alpha, dropout=dropout)
  shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), model.backbone.sites, model.params))
  if outside := [path for path in shapes if block_of(path) is None]:
    raise ValueError(f'loftq: {shortened(outside)} are in no block, and are not quantised')
  wanted = {path: read(model.params, path) for path in shapes}
  delta = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  small = model
  for _ in range(iterations):
    less = model.params
    for path, (w, _) in wanted.items():
      ab = jnp.matmul(delta[path].a, delta[path].b, precision='highest')
      less = write(less, path, read(less, path)._replace(main=w - scale * ab, bias=None))
    small = quantised(model._replace(params=less), form)
    for path, (w, _) in wanted.items():
      rest = w.astype(jnp.float32) - read(small.params, path).main.astype(jnp.float32)
      delta[path] = LoraDelta(*balanced(*leading_part(path, rest, rank), scale))
  return Loftq(small, starting_from(delta, plain))
