"""SSF: a learned scale and shift after every operation (Lian et al., 2022, arXiv:2210.08823)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.compose import chain
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.weights import Weights
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class SsfDelta(NamedTuple):
  """y * scale + shift."""

  AXES = {'scale': ('out',), 'shift': ('out',)}

  scale: Array  # [d_out], normal around 1 at init.
  shift: Array  # [d_out], normal around 0 at init.


@about(
  'transform',
  'scaling',
  Paper(
    'Scaling & shifting your features: a new baseline for efficient model tuning', '2210.08823'
  ),
  identity=False,
  tiny=lambda: ssf(),
)
@recorded
def ssf(pattern: str = '', *, spread: float = 0.02) -> PeftTransform:
  """Scales and shifts the outputs of matching linear and norm sites.

  Merging needs a bias at every site, to take up the shift.

  Args:
    pattern: regex searched in the site path; everything by default. There must
      be a match of either kind.
    spread: standard deviation at init, 0.02 in the published code, which starts near
      the frozen model; 0 starts exactly at it.

  Returns:
    A chain: its delta is `{'linear': {site: …}, 'norm': {site: …}}`.

  Raises:
    ValueError: for a negative spread.

  >>> import jax
  >>> from pecft_jax.peft import ssf
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = ssf()
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> {kind: len(sites) for kind, sites in sorted(delta.items())}
  {'linear': 37, 'norm': 13}
  """
  at_least(0, spread=spread)

  def init_one(key, spec, weights):
    del spec
    noise = spread * jax.random.normal(key, (2, weights.main.shape[-1]))
    return SsfDelta(1 + noise[0], noise[1])

  def run(delta, next_fn, *args):
    y = next_fn(*args)
    return y * delta.scale.astype(y.dtype) + delta.shift.astype(y.dtype)

  def merge(delta, weights):
    bias = jnp.zeros_like(delta.shift) if weights.bias is None else weights.bias
    return Weights(weights.main * delta.scale, bias * delta.scale + delta.shift)

  return chain(
    **{kind: per_site(kind, pattern, init_one, run, merge) for kind in ('linear', 'norm')}
  )
