"""(IA)^3: learned rescaling of keys, values and MLP activations
(Liu et al., 2022, arXiv:2205.05638).
"""

from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.peft.compose import chain
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.weights import Weights
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class Ia3Delta(NamedTuple):
  """Factors of the outputs of a linear layer, or of its inputs."""

  AXES = {'scale': ('out',)}  # Of inputs, too: they are too small for it to matter.

  scale: Array  # [d_out] or [d_in], ones at init.


@about(
  'transform',
  'scaling',
  Paper(
    'Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning',
    '2205.05638',
  ),
  tiny=lambda: ia3(),
)
@recorded
def ia3(outputs: str = r'attn/(k|v)$', inputs: str = r'mlp/(fc2|down)$') -> PeftTransform:
  """Rescales keys, values and the activations inside the MLP.

  The paper scales the MLP after its non-linearity, (l * f(x W1)) W2: at the
  input of the second layer, which is not the output of the first.

  Args:
    outputs: regex searched in the paths of linear sites whose outputs to scale.
    inputs: the same for those whose inputs to scale.

  Returns:
    A chain: its delta is `{'outputs': {site: …}, 'inputs': {site: …}}`.

  >>> import jax
  >>> from pecft_jax.peft import ia3
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = ia3()
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> {side: len(sites) for side, sites in sorted(delta.items())}
  {'inputs': 6, 'outputs': 12}
  """
  return chain(outputs=scaled_outputs(outputs), inputs=scaled_inputs(inputs))


@recorded
def scaled_outputs(pattern: str) -> PeftTransform:
  """Multiplies the outputs, bias included, of matching linear sites.

  Args:
    pattern: regex searched in the site path.

  >>> import jax
  >>> from pecft_jax.peft import scaled_outputs
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = scaled_outputs(r'attn/k$')
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  6
  """

  def init_one(key, spec, weights):
    del key, spec  # Deterministic.
    return Ia3Delta(jnp.ones(weights.main.shape[1]))

  def run(delta, next_fn, x, w, b):
    y = next_fn(x, w, b)
    return y * delta.scale.astype(y.dtype)

  def merge(delta, weights):
    bias = None if weights.bias is None else weights.bias * delta.scale
    return Weights(weights.main * delta.scale, bias)

  return per_site('linear', pattern, init_one, run, merge)


@recorded
def scaled_inputs(pattern: str) -> PeftTransform:
  """Multiplies the inputs of matching linear sites.

  Args:
    pattern: regex searched in the site path.

  >>> import jax
  >>> from pecft_jax.peft import scaled_inputs
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = scaled_inputs(r'fc2$')
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  6
  """

  def init_one(key, spec, weights):
    del key, spec  # Deterministic.
    return Ia3Delta(jnp.ones(weights.main.shape[0]))

  def run(delta, next_fn, x, w, b):
    return next_fn(x * delta.scale.astype(x.dtype), w, b)

  def merge(delta, weights):
    return Weights(weights.main * delta.scale[:, None], weights.bias)

  return per_site('linear', pattern, init_one, run, merge)
