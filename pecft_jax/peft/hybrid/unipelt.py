"""UniPELT: LoRA, prefixes and adapters, each behind a gate (Mao et al., 2022, arXiv:2110.07577)."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.masks import with_keys_ahead
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta
from pecft_jax.peft.compose import chain
from pecft_jax.peft.lowrank.lora import LoraDelta, init_lora, low_rank
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.tokens.prefix import PrefixDelta, check_head_size
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Key, PeftTransform

# What a gate is of: a token, or an example, as the mean over its tokens.
Over = Literal['token', 'example']


class Gate(NamedTuple):
  """sigmoid(h kernel + bias), with h [D] what the gated part reads."""

  kernel: Array  # [D], normal with deviation 0.02 at init.
  bias: Array  # [], zero at init.


class GatedLoraDelta(NamedTuple):
  """y = x W + g x A B, with g of x in the place of LoRA's scale."""

  factors: LoraDelta
  gate: Gate  # Of the inputs of the layer.


class GatedKeysDelta(NamedTuple):
  """Attention over [g k; K] and [g v; V], with g of the query."""

  prefix: PrefixDelta
  gate: Gate  # Of the queries of all heads.


class GatedAdapterDelta(NamedTuple):
  """y + g (relu(y W_down + b_down) W_up + b_up), with g of y, the output of the MLP."""

  adapter: BottleneckDelta
  gate: Gate


@about(
  'transform',
  'hybrid',
  Paper('UniPELT: a unified framework for parameter-efficient language model tuning', '2110.07577'),
  identity=False,
  tiny=lambda: unipelt(rank=2, length=2, width=3),
)
@recorded
def unipelt(
  rank: int = 8, length: int = 10, width: int = 48, *, over: Over = 'token'
) -> PeftTransform:
  """LoRA on queries and values, prefixes, and adapters after the MLP, each behind a gate.

  A gate is a number in (0, 1), the sigmoid of a linear function of what its part reads; it
  multiplies LoRA's update (in the place of alpha / r), keys and values of the prefix, and the
  adapter's output. Trained are, per block, 2 (2 D r + D + 1) numbers for LoRA,
  2 P Hkv K + H K + 1 for the prefix and 2 D w + w + D + D + 1 for the adapter.

  What differs from the authors' code. There a gate is the mean over all tokens of an example, pads
  and later tokens of a causal model included; `over='example'` is that, and takes the mean over the
  tokens that a site computes (in a last block that computes some rows only, these). By default each
  token has its own. The prefix's gate is there of the hidden states; here of the queries, a linear
  function of these that an attention's site has. Prefixes are not made by a network. Adapters start
  at zero and have no layer norm before them.

  Args:
    rank: r, of LoRA, at least 1.
    length: P, of the prefixes, at least 1.
    width: w, of the adapters, at least 1.
    over: `token` or `example`, what has a gate of its own.

  Raises:
    ValueError: for a rank, length or width below 1, or another `over`.

  >>> import jax
  >>> from pecft_jax.peft import unipelt
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = unipelt(rank=2, length=2, width=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> sorted(delta), delta['adapters']['block_0/mlp'].gate.kernel.shape
  (['adapters', 'low_rank', 'prefix'], (96,))
  """
  at_least(1, rank=rank, length=length, width=width)
  return chain(
    low_rank=_low_rank(rank, over), prefix=_prefix(length, over), adapters=_adapters(width, over)
  )


def _low_rank(rank: int, over: Over) -> PeftTransform:
  def init_one(key, spec, weights):
    del spec
    key_a, key_g = jax.random.split(key)
    return GatedLoraDelta(
      init_lora(key_a, weights, rank), _fresh_gate(key_g, weights.main.shape[0])
    )

  def run(delta, next_fn, x, w, b):
    return next_fn(x, w, b) + opened(delta.gate, x, over) * low_rank(delta.factors, x)

  return per_site('linear', r'attn/(q|v)$', init_one, run)


def _prefix(length: int, over: Over) -> PeftTransform:
  def init_one(key, spec, weights):
    del weights
    q, k = (spec.args[i].shape[2:] for i in range(2))
    key_k, key_v, key_g = jax.random.split(key, 3)
    learned = (0.02 * jax.random.normal(each, (length, *k)) for each in (key_k, key_v))
    return GatedKeysDelta(PrefixDelta(*learned), _fresh_gate(key_g, math.prod(q)))

  def run(delta, next_fn, q, k, v, mask):
    check_head_size('unipelt', delta.prefix.k, q)
    size = q.shape[-1]
    gate = opened(delta.gate, q.reshape(*q.shape[:2], -1), over)[..., None]  # [B, T or 1, 1, 1]
    # Gated and own keys meet different halves of the queries, so that the attention itself, with
    # its mask, stays as it is; the gated values come out beside the own ones.
    queries = jnp.concatenate([q, gate * q], -1) * jnp.asarray(2**0.5, q.dtype)
    keys, values = _beside(delta.prefix.k, k), _beside(delta.prefix.v, v)
    both = next_fn(queries, keys, values, with_keys_ahead(mask, length))
    return both[..., :size] + gate * both[..., size:]

  return per_site('attend', r'attn$', init_one, run)


def _adapters(width: int, over: Over) -> PeftTransform:
  def init_one(key, spec, weights):
    del weights
    d = spec.out.shape[-1]
    key_d, key_g = jax.random.split(key)
    bound = math.sqrt(1 / d)
    down = jax.random.uniform(key_d, (d, width), minval=-bound, maxval=bound)
    adapter = BottleneckDelta(down, jnp.zeros(width), jnp.zeros((width, d)), jnp.zeros(d))
    return GatedAdapterDelta(adapter, _fresh_gate(key_g, d))

  def run(delta, next_fn, x, stream):
    y, own = next_fn(x, stream), delta.adapter
    hidden = jax.nn.relu(product(y, own.down) + own.down_bias.astype(y.dtype))
    added = product(hidden, own.up) + own.up_bias.astype(y.dtype)
    return y + opened(delta.gate, y, over) * added

  return per_site('sublayer', r'mlp$', init_one, run)


def opened(gate: Gate, x: Array, over: Over) -> Array:
  """How far a gate is open, in the dtype of x.

  Args:
    gate: of inputs [D].
    x: [B, T, D]
    over: `token` or `example`.

  Returns:
    [B, T, 1], or [B, 1, 1] for examples.

  >>> gate = Gate(jnp.zeros(3), jnp.zeros(()))
  >>> opened(gate, jnp.ones((2, 5, 3)), 'example').tolist()
  [[[0.5]], [[0.5]]]
  """
  found = jax.nn.sigmoid(product(x, gate.kernel[:, None]).astype(jnp.float32) + gate.bias)
  if over == 'example':
    found = found.mean(range(1, x.ndim - 1), keepdims=True)
  return found.astype(x.dtype)


def _fresh_gate(key: Key, size: int) -> Gate:
  return Gate(0.02 * jax.random.normal(key, (size,)), jnp.zeros(()))


def _beside(learned: Array, own: Array) -> Array:
  """[P, H, K] before [B, T, H, K], each in its half of the components -> [B, P + T, H, 2 K]."""
  none = jnp.zeros((), own.dtype)
  learned = jnp.concatenate([jnp.broadcast_to(none, learned.shape), learned.astype(own.dtype)], -1)
  own = jnp.concatenate([own, jnp.broadcast_to(none, own.shape)], -1)
  return jnp.concatenate([jnp.broadcast_to(learned, (len(own), *learned.shape)), own], 1)
