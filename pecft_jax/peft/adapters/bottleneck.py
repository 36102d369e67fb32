"""Bottleneck adapters, serial and parallel.

Serial after attention and MLP: Houlsby et al., 2019, arXiv:1902.00751; after the
MLP alone: Pfeiffer et al., 2021, arXiv:2005.00247. Parallel to the MLP: He et al.,
2022, arXiv:2110.04366; with a small scale: AdaptFormer, Chen et al., 2022,
arXiv:2205.13535.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform

# What an adapter beside a branch reads.
Read = Literal['normed', 'residual']


class BottleneckDelta(NamedTuple):
  """scale * f(x W_down + b_down) W_up + b_up, with r the width of the bottleneck."""

  AXES = {
    'down': ('width', 'rank'),
    'down_bias': ('rank',),
    'up': ('rank', 'width'),
    'up_bias': ('width',),
  }

  down: Array  # [D, r], uniform in +-sqrt(1 / D) at init (Kaiming, slope sqrt(5)).
  down_bias: Array  # [r], zeros at init.
  up: Array  # [r, D], zeros at init.
  up_bias: Array  # [D], zeros at init.


@recorded
def bottleneck(
  pattern: str,
  width: int,
  *,
  parallel: bool = False,
  read: Read = 'normed',
  scale: float = 1.0,
  activation: Callable[[Array], Array] = jax.nn.gelu,
  dropout: float = 0.0,
) -> PeftTransform:
  """Adds a small MLP to matching branches of a residual block.

  A sublayer site is a branch after its norm. With `parallel` the adapter reads what the branch
  reads, or with `read='residual'` what comes before the norm; otherwise the branch's output.

  Args:
    pattern: regex searched in the path of `sublayer` sites.
    width: r, at least 1.
    parallel: beside the branch instead of after it.
    read: of a parallel adapter: `normed`, the branch's input after the norm, whose scale does not
      grow with depth; or `residual`, the stream that the norm reads.
    scale: factor of the adapter's output.
    activation: f, elementwise.
    dropout: share of the entries after f that are zero in training.

  Raises:
    ValueError: for a width below 1, a scale that is not positive, a dropout outside [0, 1), or a
      serial adapter with `read='residual'`.

  >>> import jax
  >>> from pecft_jax.peft import bottleneck
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = bottleneck(r'mlp$', width=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  6
  """
  if width < 1:
    raise ValueError(f'the bottleneck needs a width of at least 1, got {width}')
  above(0, scale=scale)
  if read == 'residual' and not parallel:
    raise ValueError(
      "read='residual' is of parallel adapters: a serial one reads the branch's output"
    )

  def init_one(key, spec, weights):
    del weights  # Sublayers have none of their own.
    d = spec.out.shape[-1]
    bound = math.sqrt(1 / d)
    down = jax.random.uniform(key, (d, width), minval=-bound, maxval=bound)
    return BottleneckDelta(down, jnp.zeros(width), jnp.zeros((width, d)), jnp.zeros(d))

  def run(delta, next_fn, x, stream, drop=no_drop):
    y = next_fn(x, stream)
    # The last block may compute fewer rows than it reads.
    beside = (stream if read == 'residual' else x)[:, : y.shape[1]]
    hidden = activation(
      product(beside if parallel else y, delta.down) + delta.down_bias.astype(y.dtype)
    )
    added = product(drop(hidden), delta.up) + delta.up_bias.astype(y.dtype)
    return y + jnp.asarray(scale, y.dtype) * added

  return per_site('sublayer', pattern, init_one, run, dropout=dropout)


@about(
  'transform',
  'adapters',
  Paper('Parameter-efficient transfer learning for NLP', '1902.00751'),
  tiny=lambda: houlsby(width=3),
)
@recorded
def houlsby(width: int = 48, *, dropout: float = 0.0) -> PeftTransform:
  """Serial adapters after attention and after the MLP of every block.

  The paper trains the layer norms too: chain with `ln_tuning()`.

  Args:
    width: of the bottleneck, at least 1.
    dropout: share of the entries after the activation that are zero in training.

  Raises:
    ValueError: for a width below 1, or a dropout outside [0, 1).

  >>> import jax
  >>> from pecft_jax.peft import houlsby
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = houlsby(width=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  12
  """
  return bottleneck(r'(attn|mlp)$', width, dropout=dropout)


@about(
  'transform',
  'adapters',
  Paper('AdapterFusion: non-destructive task composition for transfer learning', '2005.00247'),
  tiny=lambda: pfeiffer(width=3),
)
@recorded
def pfeiffer(width: int = 48, *, dropout: float = 0.0) -> PeftTransform:
  """Serial adapters after the MLP of every block.

  Args:
    width: of the bottleneck, at least 1.
    dropout: share of the entries after the activation that are zero in training.

  Raises:
    ValueError: for a width below 1, or a dropout outside [0, 1).

  >>> import jax
  >>> from pecft_jax.peft import pfeiffer
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = pfeiffer(width=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  6
  """
  return bottleneck(r'mlp$', width, activation=jax.nn.relu, dropout=dropout)


@about(
  'transform',
  'adapters',
  Paper('Towards a unified view of parameter-efficient transfer learning', '2110.04366'),
  name='parallel',
  tiny=lambda: parallel_adapter(width=3),
)
@recorded
def parallel_adapter(
  width: int = 64, scale: float = 4.0, *, read: Read = 'normed', dropout: float = 0.0
) -> PeftTransform:
  """Scaled adapters parallel to the MLP of every block.

  Args:
    width: of the bottleneck, at least 1.
    scale: factor of the adapter's output.
    read: as in `bottleneck`.
    dropout: share of the entries after the activation that are zero in training.

  Raises:
    ValueError: for a width below 1, or a dropout outside [0, 1).

  >>> import jax
  >>> from pecft_jax.peft import parallel_adapter
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = parallel_adapter(width=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  6
  """
  return _beside(width, scale, read, dropout)


@about(
  'transform',
  'adapters',
  Paper('AdaptFormer: adapting vision transformers for scalable visual recognition', '2205.13535'),
  tiny=lambda: adaptformer(width=3),
)
@recorded
def adaptformer(
  width: int = 64, scale: float = 0.1, *, read: Read = 'normed', dropout: float = 0.0
) -> PeftTransform:
  """Parallel adapters of small scale beside the MLP of every block.

  They read the MLP's normalised input, as eq. 3 of the paper has it. The published code, and that
  of EASE, RanPAC, SEMA and PILOT, reads the residual stream, with a dropout of 0.1:
  `adaptformer(read='residual', dropout=0.1)`.

  Args:
    width: of the bottleneck, at least 1.
    scale: factor of the adapter's output.
    read: as in `bottleneck`.
    dropout: share of the entries after the activation that are zero in training.

  Raises:
    ValueError: for a width below 1, or a dropout outside [0, 1).

  >>> import jax
  >>> from pecft_jax.peft import adaptformer
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = adaptformer(width=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  6
  """
  return _beside(width, scale, read, dropout)


def _beside(width: int, scale: float, read: Read, dropout: float) -> PeftTransform:
  return bottleneck(
    r'mlp$', width, parallel=True, read=read, scale=scale, activation=jax.nn.relu, dropout=dropout
  )
