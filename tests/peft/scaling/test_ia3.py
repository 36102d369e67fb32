"""(IA)^3 by itself."""

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import ia3
from pecft_jax.peft.scaling.ia3 import Ia3Delta
from pecft_jax.typing import Site

PEFT = ia3()
X, W, B = jnp.ones((2, 3)), jnp.arange(12.0).reshape(3, 4), jnp.arange(4.0)


def test_scales_keys_values_and_the_input_of_the_second_layer(tiny):
  delta = PEFT.init(jax.random.key(0), tiny.model.sites, tiny.params)
  assert sorted(delta['outputs']) == [f'block_{i}/attn/{n}' for i in range(3) for n in 'kv']
  assert delta['outputs']['block_0/attn/k'].scale.shape == (24,)
  assert sorted(delta['inputs']) == [f'block_{i}/mlp/fc2' for i in range(3)]
  assert delta['inputs']['block_0/mlp/fc2'].scale.shape == (36,)


def test_outputs_are_scaled_with_their_bias():
  scale = jnp.array([1.0, 2.0, 3.0, 4.0])
  delta = {'outputs': {'attn/k': Ia3Delta(scale)}, 'inputs': {}}
  y = PEFT.intercept(delta, Site('linear', 'attn/k'), linear, X, W, B)
  np.testing.assert_allclose(y, (X @ W + B) * scale)


def test_inputs_are_scaled_before_the_weights():
  scale = jnp.array([1.0, 2.0, 3.0])
  delta = {'outputs': {}, 'inputs': {'mlp/fc2': Ia3Delta(scale)}}
  y = PEFT.intercept(delta, Site('linear', 'mlp/fc2'), linear, X, W, B)
  np.testing.assert_allclose(y, (X * scale) @ W + B)
