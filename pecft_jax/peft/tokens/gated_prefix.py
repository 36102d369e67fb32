"""NoRGa: prefixes whose scores have residual gates (Le et al., 2024, arXiv:2405.14124)."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.masks import with_keys_ahead
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.tokens.prefix import check_head_size
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform

Gate = Literal['tanh', 'sigmoid', 'gelu']
_GATES: Mapping[str, Callable[[Array], Array]] = {
  'tanh': jnp.tanh,
  'sigmoid': jax.nn.sigmoid,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
}


class GatedPrefixDelta(NamedTuple):
  """softmax([s + alpha g(tau s), Q K^T / sqrt(head)]) [v; V], with s = Q k^T / sqrt(head)."""

  AXES = {'k': ('token', 'head', 'component'), 'v': ('token', 'head', 'component')}

  k: Array  # [P, Hkv, K]
  v: Array  # [P, Hkv, K]
  tau: Array  # [], one at init.
  alpha: Array  # [], one at init.


@about(
  'transform',
  'tokens',
  Paper('Mixture of experts meets prompt-based continual learning', '2405.14124'),
  identity=False,
  tiny=lambda: gated_prefix(length=3),
)
@recorded
def gated_prefix(
  pattern: str = r'attn$', length: int = 10, *, gate: Gate = 'tanh', spread: float = 0.02
) -> PeftTransform:
  """Prepends learned keys and values, whose scores s become s + alpha g(tau s).

  A prefix adds experts to those that attention is a mixture of; the gate makes their scores
  non-linear in the query. tau and alpha are learned, one of each per site. With alpha 0 it is
  `prefix`. Trained are 2 P Hkv K + 2 numbers at each site.

  NoRGa is HiDe-Prompt with it: `hide_prompt(..., peft=gated_prefix(r'block_[0-4]/attn$', 5))`. The
  authors' code trains tau and alpha in the first task alone; here those of a task are part of its
  delta.

  Args:
    pattern: regex searched in the path of `attend` sites.
    length: P, keys, and as many values; at least 1.
    gate: g: `tanh`, `sigmoid` or `gelu`, by data set in the authors' code.
    spread: standard deviation of keys and values at init.

  Raises:
    ValueError: for a length below 1, another gate, or a negative spread.

  >>> import jax
  >>> from pecft_jax.peft import gated_prefix
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = gated_prefix(length=2)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta), float(delta['block_0/attn'].alpha)
  (6, 1.0)
  """
  at_least(1, length=length)
  at_least(0, spread=spread)
  bend = _GATES[gate]

  def init_one(key, spec, weights):
    del weights
    shape = (length, *spec.args[1].shape[2:])
    k, v = (spread * jax.random.normal(each, shape) for each in jax.random.split(key))
    return GatedPrefixDelta(k, v, jnp.ones(()), jnp.ones(()))

  def run(delta, next_fn, q, k, v, mask):
    check_head_size('gated_prefix', delta.k, q)
    size, (count, heads, _) = q.shape[-1], delta.k.shape
    gates = delta.alpha * bend(delta.tau * _scores(q, delta.k))  # [B, T, H, P]
    # Gates enter the scores as further components, each of which one learned key has alone: the
    # attention itself, with its mask, stays as it is.
    more = size + count
    queries = jnp.concatenate([q * (more / size) ** 0.5, gates.astype(q.dtype) * more**0.5], -1)
    own = jnp.broadcast_to(jnp.eye(count)[:, None], (count, heads, count))
    learned = jnp.concatenate([delta.k, own], -1)
    wider = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, count)))
    keys = _before(learned, wider(k))
    values = wider(_before(delta.v, v))
    return next_fn(queries, keys, values, with_keys_ahead(mask, count))[..., :size]

  return per_site('attend', pattern, init_one, run)


def _scores(q: Array, k: Array) -> Array:
  """q [B, T, H, K], k [P, Hkv, K] -> [B, T, H, P] float32; consecutive queries share a key."""
  groups = q.reshape(*q.shape[:2], k.shape[1], -1, q.shape[-1])
  scores = jnp.einsum(
    'bthgk,phk->bthgp', groups, k.astype(q.dtype), preferred_element_type=jnp.float32
  )
  return scores.reshape(*q.shape[:3], k.shape[0]) * q.shape[-1] ** -0.5


def _before(learned: Array, own: Array) -> Array:
  """[P, Hkv, K] before [B, T, Hkv, K] -> [B, P + T, Hkv, K]."""
  learned = jnp.broadcast_to(learned, (own.shape[0], *learned.shape))
  return jnp.concatenate([learned.astype(own.dtype), own], 1)
