import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.continual import hide_lora
from pecft_jax.peft import lora

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, frozen_of, shaken


def test_each_example_is_read_with_the_factors_of_the_task_that_is_found():
  method = hide_lora(TOY, CAPACITY, peft=lora('fc$', rank=2), samples=4, blend=0.25)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  inner = memory['inner']
  home = jnp.array([0, 0, 1, 1, 1, 2, 2], jnp.int32)
  inner = {**inner, 'bank': shaken(inner['bank'], 3, 0.5), 'latest': home}
  params, memory = shaken(params, 4, 0.5), {**memory, 'inner': inner}
  x = batch(TOY.inputs.shape, range(7), 3, rows=8).x
  found = jax.jit(method.predict)(params, memory, env(frozen, 2), x)

  wide = lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float64), tree)
  fc, bank, now = wide(frozen)['block_0']['fc'], wide(inner['bank']), wide(params['delta'])
  rows = ((x / 255 - 0.5) / 0.25).reshape(8, -1)
  heads = wide((params['identity']['head'], params['head']))
  read = lambda a, b: np.tanh(rows @ (fc['kernel'] + 2 * a @ b) + fc['bias'])
  frozen_h = np.tanh(rows @ fc['kernel'] + fc['bias'])
  task = np.asarray(home)[(frozen_h @ heads[0].kernel + heads[0].bias).argmax(1)]
  assert len(set(task)) > 1
  (old,), (new,) = bank.values(), now.values()
  # Factors are blended each by itself.
  last = [0.75 * n + 0.25 * o[:2].mean(0) for n, o in zip(new, old, strict=True)]
  factors = [*((old.a[t], old.b[t]) for t in range(2)), last]
  each = [read(a, b) @ heads[1].kernel + heads[1].bias for a, b in factors]
  np.testing.assert_allclose(found, [each[t][i] for i, t in enumerate(task)], atol=1e-4)


def test_by_default_keys_and_values_are_changed_by_a_fifth_of_the_product():
  method = hide_lora(MODEL, CAPACITY)
  params, memory = jax.eval_shape(method.init, jax.random.key(0), frozen_of(MODEL))
  assert sorted(params['delta']) == ['block_0/attn/k', 'block_0/attn/v']
  assert params['delta']['block_0/attn/k'].a.shape == (24, 5)
  assert memory['inner']['bank']['block_0/attn/v'].b.shape == (len(CLASSES), 5, 24)
  assert method.name == 'hide_lora' and method.settings['name'].endswith('hide_lora')
