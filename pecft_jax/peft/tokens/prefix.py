"""Prefix tuning: learned keys and values in every attention
(Li and Liang, 2021, arXiv:2101.00190; all layers and no reparameterisation as in
P-tuning v2, Liu et al., 2022, arXiv:2110.07602).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.masks import with_keys_ahead
from pecft_jax.peft.sites import per_site
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class PrefixDelta(NamedTuple):
  """softmax(Q [k; K]^T) [v; V]; a leading batch axis gives each example its own prefix."""

  AXES = {'k': ('token', 'head', 'component'), 'v': ('token', 'head', 'component')}

  k: Array  # [P, H, K] or [B, P, H, K]
  v: Array  # [P, H, K] or [B, P, H, K]


@about(
  'transform',
  'tokens',
  Paper('Prefix-tuning: optimizing continuous prompts for generation', '2101.00190'),
  identity=False,
  tiny=lambda: prefix(length=3),
)
@recorded
def prefix(pattern: str = r'attn$', length: int = 10, *, spread: float = 0.02) -> PeftTransform:
  """Prepends learned keys and values that every query sees.

  `length` counts the learned keys; there are equally many learned values. Code for
  continual learning often counts both together: its length 20 is 10 here.

  Args:
    pattern: regex searched in the path of `attend` sites.
    length: P, at least 1.
    spread: standard deviation of keys and values at init. No value leaves the model
      unchanged at init: keys of zero still receive attention.

  Raises:
    ValueError: for a length below 1, or a negative spread.

  >>> import jax
  >>> from pecft_jax.peft import prefix
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = prefix(length=2)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  6
  """
  if length < 1:
    raise ValueError(f'a prefix needs a length of at least 1, got {length}')
  at_least(0, spread=spread)

  def init_one(key, spec, weights):
    del weights
    shape = (length, *spec.args[1].shape[2:])
    return PrefixDelta(*(spread * jax.random.normal(k, shape) for k in jax.random.split(key)))

  def run(delta, next_fn, *args):
    q, k, v, mask = args
    mask = with_keys_ahead(mask, delta.k.shape[-3])
    return next_fn(q, _before(delta.k, k), _before(delta.v, v), mask)

  return per_site('attend', pattern, init_one, run)


def _before(learned: Array, own: Array) -> Array:
  """[P, H, K] or [B, P, H, K] before [B, T, H, K + more] -> [B, P + T, H, K + more].

  Where another transform gives heads further components, as `gated_prefix` does, learned keys and
  values have zeros there.
  """
  learned = jnp.broadcast_to(learned, (own.shape[0], *learned.shape[-3:]))
  learned = jnp.pad(learned, [(0, 0)] * 3 + [(0, own.shape[-1] - learned.shape[-1])])
  return jnp.concatenate([learned.astype(own.dtype), own], 1)


def check_head_size(name: str, learned: Array, q: Array) -> None:
  """Raises ValueError where another transform has given heads further components.

  Args:
    name: of the transform that learned keys.
    learned: [..., K]
    q: [..., K + more], the queries that it meets.
  """
  if learned.shape[-1] != q.shape[-1]:
    raise ValueError(
      f'{name}: expected queries of size {learned.shape[-1]}, got {q.shape[-1]}: a later part of '
      f'the chain, as gated_prefix or unipelt, makes them wider; put that part before {name}, or '
      'leave one of them out'
    )
