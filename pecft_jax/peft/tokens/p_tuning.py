"""P-tuning: a prompt that a small network makes of learned embeddings
(Liu et al., 2021, arXiv:2103.10385).
"""

import math
from typing import NamedTuple

import jax

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.sites import matching_sites, site_key
from pecft_jax.peft.tokens.prompt import PromptDelta, prompt
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Key, PeftTransform


class Layer(NamedTuple):
  """x W + b, with W uniform in +-sqrt(1 / d_in) at init, and b, too."""

  AXES = {'kernel': ('width', 'width'), 'bias': ('width',)}

  kernel: Array  # [d_in, d_out]
  bias: Array  # [d_out]


class PTuningDelta(NamedTuple):
  """Prompt = MLP(embeddings), with a rectifier after its first two layers.

  Hugging Face's `PromptEncoder`: `embedding.weight` = embeddings, `mlp_head.0`, `.2` and `.4` =
  first, second and third, their weights transposed. Its file P_TUNING has the prompt alone, as
  `prompt_embeddings` [P, D]: see `encoded`.
  """

  AXES = {'embeddings': ('token', 'width')}

  embeddings: Array  # [P, D], standard normal at init.
  first: Layer  # D -> hidden
  second: Layer  # hidden -> hidden
  third: Layer  # hidden -> D


@about(
  'transform',
  'tokens',
  Paper('GPT understands, too', '2103.10385'),
  identity=False,
  tiny=lambda: p_tuning(length=3, hidden=5),
)
@recorded
def p_tuning(length: int = 10, hidden: int | None = None) -> PeftTransform:
  """Learned tokens at the encoder's input, made by a small network (P-tuning v1).

  Trained are P D numbers, and those of the network: 2 D hidden + hidden^2 + 2 hidden + D. After
  training it can be dropped: `encoded(delta)` is a delta of `prompt_tuning`. The network is the
  MLP of Hugging Face's code; the paper has an LSTM before one.

  Args:
    length: P, at least 1.
    hidden: width of the network's hidden layers; that of the tokens by default.

  Raises:
    ValueError: for a length or a hidden width below 1.

  >>> import jax
  >>> from pecft_jax.peft import p_tuning
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = p_tuning(length=2, hidden=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['encoder'].first.kernel.shape
  (96, 8)
  """
  at_least(1, length=length, hidden=hidden)
  pattern = r'^encoder$'
  tokens = prompt(pattern, length)

  def init(key, sites, params):
    del params
    return {
      spec.site.path: _fresh(site_key(key, spec.site.path), length, spec.args[0].shape[-1], hidden)
      for spec in matching_sites(sites, 'tokens', pattern)
    }

  def intercept(delta, site, next_fn, *args):
    if site.kind != 'tokens' or site.path not in delta:
      return next_fn(*args)
    assert tokens.intercept is not None
    return tokens.intercept(encoded({site.path: delta[site.path]}), site, next_fn, *args)

  return PeftTransform(init, intercept)


def encoded(delta: Delta) -> Delta:
  """The prompts that the networks of a delta make: a delta of `prompt_tuning`.

  >>> import jax
  >>> from pecft_jax.peft import p_tuning
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> delta = p_tuning(length=2).init(jax.random.key(0), model.backbone.sites, model.params)
  >>> encoded(delta)['encoder'].tokens.shape
  (2, 96)

  Args:
    delta: of `p_tuning`.
  """

  def one(leaf: PTuningDelta) -> PromptDelta:
    x = jax.nn.relu(_layer(leaf.first, leaf.embeddings))
    x = jax.nn.relu(_layer(leaf.second, x))
    return PromptDelta(_layer(leaf.third, x))

  return {path: one(leaf) for path, leaf in delta.items()}


def _layer(layer: Layer, x: Array) -> Array:
  return product(x, layer.kernel) + layer.bias


def _fresh(key: Key, length: int, width: int, hidden: int | None) -> PTuningDelta:
  hidden = width if hidden is None else hidden
  key_e, *keys = jax.random.split(key, 4)

  def layer(key: Key, d_in: int, d_out: int) -> Layer:
    bound = math.sqrt(1 / d_in)
    draw = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    key_w, key_b = jax.random.split(key)
    return Layer(draw(key_w, (d_in, d_out)), draw(key_b, (d_out,)))

  sizes = ((width, hidden), (hidden, hidden), (hidden, width))
  layers = [layer(each, *size) for each, size in zip(keys, sizes, strict=True)]
  return PTuningDelta(jax.random.normal(key_e, (length, width)), *layers)
