"""Prefix tuning with its reparameterisation: a network makes all keys and values
(Li and Liang, 2021, arXiv:2101.00190, section 4.3).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.sites import matching_sites, site_key
from pecft_jax.peft.tokens.prefix import PrefixDelta, prefix
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Key, Params, PeftTransform, SiteSpec

SHARED = 'prefix'  # The part of a delta that all sites use.


class PrefixEncoder(NamedTuple):
  """tanh(embeddings W + b), which all layers share."""

  AXES = {'embeddings': ('token', 'width'), 'kernel': ('width', 'rank'), 'bias': ('rank',)}

  embeddings: Array  # [P, Hkv K], standard normal at init.
  kernel: Array  # [Hkv K, M], uniform in +-sqrt(1 / d_in) at init, as are all that follow.
  bias: Array  # [M]


class PrefixHead(NamedTuple):
  """The keys and values of one layer, from the network's hidden state."""

  AXES = {
    'k': ('rank', 'head', 'component'),
    'k_bias': ('head', 'component'),
    'v': ('rank', 'head', 'component'),
    'v_bias': ('head', 'component'),
  }

  k: Array  # [M, Hkv, K]
  k_bias: Array  # [Hkv, K]
  v: Array  # [M, Hkv, K]
  v_bias: Array  # [Hkv, K]


@about(
  'transform',
  'tokens',
  Paper('Prefix-tuning: optimizing continuous prompts for generation', '2101.00190'),
  identity=False,
  tiny=lambda: prefix_mlp(length=3, hidden=5),
)
@recorded
def prefix_mlp(pattern: str = r'attn$', length: int = 10, hidden: int = 512) -> PeftTransform:
  """Prepends keys and values that one small network makes for all layers.

  Trained are P Hkv K numbers, (Hkv K + 1) M of the first layer of the network, and 2 (M + 1) Hkv K
  of its second for each attention. After training the network can be dropped: `flat(delta)` is a
  delta of `prefix`. It is Hugging Face's PREFIX_TUNING with `prefix_projection`, whose
  `embedding.weight`, `transform.0` and `transform.2` are these arrays: rows of the last are
  ordered by layer, then keys before values; its file has the flat result alone.

  Args:
    pattern: regex searched in the path of `attend` sites.
    length: P, at least 1.
    hidden: M, width of the network's hidden layer.

  Raises:
    ValueError: for a length or a hidden width below 1; at init, for sites whose keys have
      different shapes.

  >>> import jax
  >>> from pecft_jax.peft import prefix_mlp
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = prefix_mlp(length=2, hidden=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['prefix'].kernel.shape, delta['block_0/attn'].k.shape
  ((96, 8), (8, 3, 32))
  """
  at_least(1, length=length, hidden=hidden)
  plain = prefix(pattern, length)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    del params
    found = matching_sites(sites, 'attend', pattern)
    shapes = {spec.args[1].shape[2:] for spec in found}
    if len(shapes) > 1:
      raise ValueError(
        f'the network of prefix_mlp() needs keys of one shape [heads, size], got {sorted(shapes)}'
      )
    ((heads, size),) = shapes
    width = heads * size
    key_e, key_w, key_b, key_h = jax.random.split(site_key(key, SHARED), 4)
    shared = PrefixEncoder(
      jax.random.normal(key_e, (length, width)),
      _uniform(key_w, (width, hidden), width),
      _uniform(key_b, (hidden,), width),
    )

    def head(path: str) -> PrefixHead:
      keys = jax.random.split(site_key(key_h, path), 4)
      shapes = ((hidden, heads, size), (heads, size)) * 2
      return PrefixHead(*(_uniform(k, s, hidden) for k, s in zip(keys, shapes, strict=True)))

    return {SHARED: shared, **{spec.site.path: head(spec.site.path) for spec in found}}

  def intercept(delta, site, next_fn, *args):
    if site.kind != 'attend' or site.path not in delta:
      return next_fn(*args)
    assert plain.intercept is not None
    own = {SHARED: delta[SHARED], site.path: delta[site.path]}
    return plain.intercept(flat(own), site, next_fn, *args)

  return PeftTransform(init, intercept)


def flat(delta: Delta) -> Delta:
  """The keys and values that the network of a delta makes: a delta of `prefix`.

  >>> import jax
  >>> from pecft_jax.peft import prefix_mlp
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = prefix_mlp(length=2, hidden=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> flat(delta)['block_0/attn'].k.shape
  (2, 3, 32)

  Args:
    delta: of `prefix_mlp`.
  """
  shared = delta[SHARED]
  hidden = jnp.tanh(product(shared.embeddings, shared.kernel) + shared.bias)
  made = lambda kernel, bias: jnp.tensordot(hidden, kernel, 1) + bias
  return {
    path: PrefixDelta(made(head.k, head.k_bias), made(head.v, head.v_bias))
    for path, head in delta.items()
    if path != SHARED
  }


def _uniform(key: Key, shape: tuple[int, ...], fan_in: int) -> Array:
  bound = math.sqrt(1 / fan_in)
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
