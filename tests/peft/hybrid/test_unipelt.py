"""The gated parts of UniPELT, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import BIAS, D_IN, D_OUT, W, X, noise, wide

from pecft_jax.backbones.core.attention import attend
from pecft_jax.backbones.core.layers import linear
from pecft_jax.masks import Mask
from pecft_jax.peft import GatedAdapterDelta, GatedKeysDelta, GatedLoraDelta, unipelt
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta
from pecft_jax.peft.hybrid.unipelt import Gate
from pecft_jax.peft.lowrank.lora import LoraDelta
from pecft_jax.peft.tokens.prefix import PrefixDelta
from pecft_jax.typing import Site

LORA = GatedLoraDelta(
  LoraDelta(noise(D_IN, 2), noise(2, D_OUT, seed=2)), Gate(noise(D_IN, seed=3), jnp.array(0.3))
)
KEYS = GatedKeysDelta(
  PrefixDelta(noise(7, 2, 4, seed=4), noise(7, 2, 4, seed=5)),
  Gate(0.3 * noise(24, seed=6), jnp.array(-0.2)),
)
ADAPTER = GatedAdapterDelta(
  BottleneckDelta(noise(6, 3), noise(3, seed=2), noise(3, 6, seed=3), noise(6, seed=4)),
  Gate(noise(6, seed=5), jnp.array(0.1)),
)
Q, K, V = noise(2, 5, 6, 4), noise(2, 5, 2, 4, seed=2), noise(2, 5, 2, 4, seed=3)
every_over = pytest.mark.parametrize('over', ['token', 'example'])


def through(over, part, leaf, site, next_fn, *args):
  """The transform with one site alone in its delta."""
  delta = {name: {} for name in ('low_rank', 'prefix', 'adapters')} | {part: {site.path: leaf}}
  return wide(unipelt(rank=2, length=7, width=3, over=over).intercept(delta, site, next_fn, *args))


def gate(own, x, over):
  found = 1 / (1 + np.exp(-(wide(x) @ wide(own.kernel) + wide(own.bias))))[..., None]
  return found if over == 'token' else found.mean(1, keepdims=True)


@every_over
def test_a_gate_stands_for_the_scale_of_lora(over):
  site = Site('linear', 'block_0/attn/q')
  found = through(over, 'low_rank', LORA, site, linear, X, W, BIAS)
  want = (
    X @ W
    + BIAS
    + gate(LORA.gate, X, over) * (wide(X) @ wide(LORA.factors.a) @ wide(LORA.factors.b))
  )
  np.testing.assert_allclose(found, want, atol=2e-5)


@every_over
@pytest.mark.parametrize('causal', [False, True])
def test_gated_keys_and_values_come_first(over, causal):
  site = Site('attend', 'block_0/attn')
  mask = Mask(causal=True) if causal else None
  found = through(over, 'prefix', KEYS, site, attend, Q, K, V, mask)
  gates = np.broadcast_to(gate(KEYS.gate, Q.reshape(2, 5, 24), over), (2, 5, 1))
  for b, t, head in np.ndindex(2, 5, 6):
    seen = slice(0, t + 1 if causal else 5)
    g, own = gates[b, t, 0], head // 3
    keys = np.concatenate([g * wide(KEYS.prefix.k)[:, own], wide(K)[b, seen, own]])
    values = np.concatenate([g * wide(KEYS.prefix.v)[:, own], wide(V)[b, seen, own]])
    weights = np.exp(keys @ wide(Q)[b, t, head] / 2)
    np.testing.assert_allclose(found[b, t, head], weights / weights.sum() @ values, atol=1e-5)


@every_over
def test_adapters_read_what_the_gate_reads(over):
  y, own = noise(2, 5, 6, seed=7), ADAPTER.adapter
  site = Site('sublayer', 'block_0/mlp')
  found = through(over, 'adapters', ADAPTER, site, lambda x, stream: y, y, y)
  hidden = np.maximum(wide(y) @ wide(own.down) + wide(own.down_bias), 0)
  added = hidden @ wide(own.up) + wide(own.up_bias)
  np.testing.assert_allclose(found, wide(y) + gate(ADAPTER.gate, y, over) * added, atol=1e-5)


def test_gates_start_half_open_and_lora_and_adapters_at_zero(tiny):
  delta = unipelt(2, 3, 4).init(jax.random.key(0), tiny.model.sites, tiny.params)
  assert sorted(delta['low_rank']) == [f'block_{i}/attn/{p}' for i in range(3) for p in 'qv']
  leaf = delta['low_rank']['block_1/attn/q']
  assert not leaf.factors.b.any() and leaf.factors.a.any() and not leaf.gate.bias
  assert 0.005 < leaf.gate.kernel.std() < 0.05
  assert not delta['adapters']['block_1/mlp'].adapter.up.any()
  assert delta['prefix']['block_1/attn'].gate.kernel.shape == (24,)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match='length must be at least 1, got 0'):
    unipelt(length=0)
  with pytest.raises(ValueError, match=r"over: expected one of \['token', 'example'\]"):
    unipelt(over='batch')
