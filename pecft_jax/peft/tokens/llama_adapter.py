"""LLaMA-Adapter: keys and values beside those of the tokens, behind a gate that starts at zero
(Zhang et al., 2023, arXiv:2303.16199).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.tokens.prefix import check_head_size
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class LlamaAdapterDelta(NamedTuple):
  """attention(Q, K, V) + gate softmax(Q k^T / sqrt(head)) v, before the output projection.

  Of Hugging Face's ADAPTION_PROMPT, `adaption_gate` is `gate`, and k and v are what the layer's
  own projections make of `adaption_prompt` [1, P, D], without rotary positions.
  """

  AXES = {'k': ('token', 'head', 'component'), 'v': ('token', 'head', 'component')}

  k: Array  # [P, Hkv, K]
  v: Array  # [P, Hkv, K]
  gate: Array  # [1], zero at init.


@about(
  'transform',
  'tokens',
  Paper('LLaMA-Adapter: efficient fine-tuning of language models with zero-init attention',
        '2303.16199'),
  tiny=lambda: llama_adapter(length=3),
)  # fmt: skip
@recorded
def llama_adapter(
  pattern: str = r'attn$', length: int = 10, *, spread: float = 1.0
) -> PeftTransform:
  """Adds gated attention to learned keys and values in every attention.

  They have a softmax of their own, so that with a gate of zero nothing changes. Trained are
  2 P Hkv K + 1 numbers at each site: keys and values themselves. The paper trains a prompt [P, D]
  from which each layer projects both; the function is the same, and the one of the last layers
  alone, which the paper adapts, is `at_layers(llama_adapter(), ...)`.

  Args:
    pattern: regex searched in the path of `attend` sites.
    length: P, at least 1.
    spread: standard deviation of keys and values at init, as a projection with entries of
      variance 1 / D makes them of a standard normal prompt.

  Raises:
    ValueError: for a length below 1, or a spread that is not positive.

  >>> import jax
  >>> from pecft_jax.peft import llama_adapter
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = llama_adapter(length=2)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn'].gate.tolist()
  [0.0]
  """
  at_least(1, length=length)
  above(0, spread=spread)

  def init_one(key, spec, weights):
    del weights
    shape = (length, *spec.args[1].shape[2:])
    k, v = (spread * jax.random.normal(each, shape) for each in jax.random.split(key))
    return LlamaAdapterDelta(k, v, jnp.zeros(1))

  def run(delta, next_fn, q, k, v, mask):
    check_head_size('llama_adapter', delta.k, q)
    return next_fn(q, k, v, mask) + delta.gate.astype(q.dtype) * beside(q, delta.k, delta.v)

  return per_site('attend', pattern, init_one, run)


def beside(q: Array, k: Array, v: Array) -> Array:
  """Softmax attention of q [B, T, H, K] to learned k and v [P, Hkv, K] alone: [B, T, H, K].

  Consecutive queries share a key. Scores and softmax are float32.
  """
  groups = q.reshape(*q.shape[:2], k.shape[1], -1, q.shape[-1])
  scores = jnp.einsum(
    'bthgk,phk->bthgp', groups, k.astype(q.dtype), preferred_element_type=jnp.float32
  )
  shares = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), -1).astype(q.dtype)
  return jnp.einsum('bthgp,phk->bthgk', shares, v.astype(q.dtype)).reshape(q.shape)
