"""Softmax attention, forward and backward.

The weights [B, H, Tq, T] are not stored for the backward pass: they are computed again from the
maxima and sums of the scores (Dao et al., 2022, arXiv:2205.14135). Heads go before tokens in all
products, so that these are plain products of matrices: XLA on the CPU computes others one by one.

On NVIDIA's GPUs cuDNN's kernel computes the same where it can; see `cudnn_fits`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.masks import Mask
from pecft_jax.typing import Array

_HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)  # A score that is left out: finite, for no NaN.


def attend(q: Array, k: Array, v: Array, mask: Mask | Array | None) -> Array:
  """Softmax attention: q [B, Tq, H, K], k and v [B, T, Hkv, K] -> [B, Tq, H, K].

  Hkv divides H: consecutive queries share a key (Ainslie et al., 2023,
  arXiv:2305.13245). Scores, softmax and sums are float32.

  Args:
    q: queries.
    k: keys.
    v: values.
    mask: a rule, or an array [Tq, T] or [B, Tq, T] that is True where a query
      may attend, or None for everywhere. A query that may attend nowhere gets
      the mean of the values.

  >>> x = jnp.ones((2, 5, 4, 8))
  >>> attend(x, x[:, :, :2], x[:, :, :2], Mask(causal=True)).shape
  (2, 5, 4, 8)
  """
  return _attention(q, k, v, mask)


def cudnn_fits(q: Array, k: Array, v: Array, mask: Mask | Array | None) -> bool:
  """Whether cuDNN's attention takes these arguments: half precision, no prefix, no mask by array.

  >>> x = jnp.ones((2, 5, 4, 8))
  >>> half = x.astype(jnp.bfloat16)
  >>> cudnn_fits(x, x, x, None), cudnn_fits(half, half, half, Mask(causal=True))
  (False, True)
  """
  half = q.dtype == k.dtype == v.dtype and q.dtype in (jnp.bfloat16, jnp.float16)
  ruled = mask is None or (isinstance(mask, Mask) and not mask.ahead)
  # Sizes of programs for export may be symbols; such a program has no kernels of one platform.
  known = all(isinstance(size, int) for size in (*q.shape, *k.shape))
  if not (half and ruled and known):
    return False
  tokens, size = q.shape[1], q.shape[3]
  return k.shape[1] == tokens > 1 and size % 8 == 0 and size <= 128


def _on_nvidia() -> bool:
  """Whether the default device is an NVIDIA GPU of compute capability 8.0 or later."""
  if jax.default_backend() != 'gpu':
    return False
  capability = str(getattr(jax.local_devices()[0], 'compute_capability', ''))
  return re.fullmatch(r'\d+\.\d+', capability) is not None and float(capability) >= 8


def _by_cudnn(q: Array, k: Array, v: Array, mask: Mask | None) -> Array:
  """By cuDNN's kernel, whose gradient refuses odd lengths: these get one more token, unseen."""
  q, k, v = _alike(q, k, v)
  tokens = q.shape[1]
  lengths = None if mask is None else mask.lengths
  if tokens % 2:
    lengths = tokens if lengths is None else lengths
    q, k, v = (jnp.pad(a, ((0, 0), (0, 1), (0, 0), (0, 0))) for a in (q, k, v))
  queries = keys = None
  if lengths is not None:
    zeros = 0 * q[:, 0, 0, 0].astype(jnp.int32)  # Batched under vmap if q is, as in `_alike`.
    queries, keys = zeros + q.shape[1], zeros + lengths
  out = jax.nn.dot_product_attention(
    q,
    k,
    v,
    query_seq_lengths=queries,
    key_value_seq_lengths=keys,
    is_causal=mask is not None and mask.causal,
    implementation='cudnn',
  )
  return out[:, :tokens]


@jax.custom_vjp
def _alike(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
  """The same arrays; under vmap all three are batched, along the first axis, if one is.

  The kernel's own rule for vmap takes no others. XLA removes the joining and slicing.
  """
  arrays = q, k, v
  flat = jnp.concatenate([a.reshape(a.shape[0], -1) for a in arrays], 1)
  ends = [q[0].size, q[0].size + k[0].size]
  first, second, third = jnp.split(flat, ends, 1)
  return first.reshape(q.shape), second.reshape(k.shape), third.reshape(v.shape)


_alike.defvjp(lambda q, k, v: (_alike(q, k, v), None), lambda _, gs: gs)


@jax.custom_vjp
def _attention(q: Array, k: Array, v: Array, mask: Any) -> Array:
  return _by_platform(q, k, v, mask)[0]


def _keep(q: Array, k: Array, v: Array, mask: Any) -> tuple[Array, Any]:
  out, top, total = _by_platform(q, k, v, mask)
  return out, (q, k, v, mask, out, top, total)


def _pull(kept: Any, g: Array) -> tuple[Any, ...]:
  q, k, v, mask, out, top, total = kept
  if not (_on_nvidia() and cudnn_fits(q, k, v, mask)):
    return *_backward(q, k, v, mask, out, top, total, g), None

  def cudnn(q: Array, k: Array, v: Array, mask: Any, *rest: Array) -> tuple[Array, ...]:
    # The kernel's own statistics are not among what is kept, which is the same on each platform.
    return jax.vjp(lambda q, k, v: _by_cudnn(q, k, v, mask), q, k, v)[1](rest[-1])

  return *jax.lax.platform_dependent(*kept, g, cuda=cudnn, default=_backward), None


_attention.defvjp(_keep, _pull)


def _by_platform(q: Array, k: Array, v: Array, mask: Any) -> tuple[Array, Array, Array]:
  """The output, and the maxima and sums of the softmax, which are zeros where cuDNN runs."""
  if not (_on_nvidia() and cudnn_fits(q, k, v, mask)):
    return _forward(q, k, v, mask)

  def cudnn(q: Array, k: Array, v: Array, mask: Any) -> tuple[Array, Array, Array]:
    heads = k.shape[2]
    nothing = jnp.zeros((q.shape[0], heads, q.shape[1] * q.shape[2] // heads, 1), jnp.float32)
    return _by_cudnn(q, k, v, mask), nothing, nothing

  # Chosen when the program is lowered: it may be traced here for another platform.
  return jax.lax.platform_dependent(q, k, v, mask, cuda=cudnn, default=_forward)


def _scores(q: Array, k: Array, mask: Any, rows: int) -> Array:
  """[B, Hkv, G Tq, T] float32, of q [B, Hkv, G Tq, K] and k [B, Hkv, T, K]."""
  scores = _product('bhqk,bhtk->bhqt', q, k) * q.shape[-1] ** -0.5
  seen = mask.array(rows, k.shape[2]) if isinstance(mask, Mask) else mask
  if seen is None:
    return scores
  # [B, 1, 1, Tq, T] over heads and the queries that share a key.
  seen = seen[:, None, None] if seen.ndim == 3 else seen
  apart = scores.reshape(*scores.shape[:2], -1, rows, scores.shape[-1])
  return jnp.where(seen, apart, _HIDDEN).reshape(scores.shape)


def _forward(q: Array, k: Array, v: Array, mask: Any) -> tuple[Array, Array, Array]:
  """The output [B, Tq, H, K], and the maxima and sums [B, Hkv, G Tq, 1] of the softmax."""
  rows, heads = q.shape[1], k.shape[2]
  scores = _scores(_by_key(q, heads), _heads_first(k), mask, rows)
  top = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - top)
  total = weights.sum(-1, keepdims=True)
  out = _product('bhqt,bhtk->bhqk', weights.astype(v.dtype), _heads_first(v)) / total
  return _by_query(out.astype(q.dtype), rows), top, total


def _backward(
  q: Array, k: Array, v: Array, mask: Any, out: Array, top: Array, total: Array, g: Array
) -> tuple[Array, Array, Array]:
  """The gradients of q, k and v from that of the output."""
  rows, heads, dtype = q.shape[1], k.shape[2], q.dtype
  q, out, g = (_by_key(a, heads) for a in (q, out, g))
  k, v = _heads_first(k), _heads_first(v)
  weights = jnp.exp(_scores(q, k, mask, rows) - top) / total
  inner = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
  slope = weights * (_product('bhqk,bhtk->bhqt', g, v) - inner) * q.shape[-1] ** -0.5
  slope = slope.astype(dtype)
  dv = _product('bhqt,bhqk->bhtk', weights.astype(dtype), g)
  dq = _product('bhqt,bhtk->bhqk', slope, k)
  dk = _product('bhqt,bhqk->bhtk', slope, q)
  return (
    _by_query(dq.astype(dtype), rows),
    _heads_first(dk.astype(dtype)),
    _heads_first(dv.astype(dtype)),
  )


def _product(spec: str, a: Array, b: Array) -> Array:
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _heads_first(a: Array) -> Array:
  """[B, T, H, K] -> [B, H, T, K], and back."""
  return a.swapaxes(1, 2)


def _by_key(a: Array, heads: int) -> Array:
  """Queries that share a key as more rows: [B, Tq, H, K] -> [B, Hkv, G Tq, K]."""
  return _heads_first(a).reshape(a.shape[0], heads, -1, a.shape[-1])


def _by_query(a: Array, rows: int) -> Array:
  """[B, Hkv, G Tq, K] -> [B, Tq, H, K]"""
  return _heads_first(a.reshape(a.shape[0], -1, rows, a.shape[-1]))
