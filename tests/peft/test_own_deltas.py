"""A delta of its own for each example, against one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tinies import tiny_peft
from tiny_vit import shaken

from pecft_jax.about import tinies
from pecft_jax.peft import PEFTS, bank, bitfit, lora, per_example, take

SLOTS = jnp.array([2, 0, 2, 1])
LATER = ('block_1', 'block_2')  # A shallow model has the first block.


@pytest.mark.parametrize('name', list(tinies(PEFTS)))
def test_a_batch_of_deltas_equals_one_example_at_a_time(tiny, name):
  peft = tiny_peft(name)
  if peft.replace is not None:
    with pytest.raises(ValueError, match='replaces weights'):
      per_example(tiny.model.apply, peft)
    return
  if peft.calibrate is not None:
    return  # Has no bank of its own; its slots are stacked like those of others.
  model, params = tiny.shallow, {k: v for k, v in tiny.params.items() if k not in LATER}
  delta = bank(peft, 3).init(jax.random.key(0), model.sites, params)
  delta = shaken(delta, 1, 0.1)
  images = jnp.stack([tiny.images[i % len(tiny.images)] + 0.1 * i for i in range(len(SLOTS))])
  got = jax.jit(per_example(model.apply, peft))(params, images, delta, SLOTS).pooled
  alone = jax.jit(lambda x, one: model.apply(params, x, one, peft=peft).pooled[0])
  for i, slot in enumerate(SLOTS.tolist()):
    want = alone(images[i : i + 1], take(delta, slot))
    np.testing.assert_allclose(got[i], want, atol=1e-5)  # Sums of 24 to 72 numbers of size 2.


def test_other_slots_and_banks_compile_nothing(tiny):
  peft = lora('fc1$', rank=2)
  run = jax.jit(per_example(tiny.model.apply, peft))
  for seed in range(2):
    delta = bank(peft, 3).init(jax.random.key(seed), tiny.model.sites, tiny.params)
    run(tiny.params, tiny.images, delta, jnp.arange(len(tiny.images)) % (seed + 1))
  assert run._cache_size() == 1


def test_products_with_the_model_are_of_the_whole_batch(tiny):
  peft = lora('fc1$', rank=1)
  delta = bank(peft, 3).init(jax.random.key(0), tiny.model.sites, tiny.params)
  slots = jnp.zeros(len(tiny.images), jnp.int32)
  run = jax.jit(per_example(tiny.model.apply, peft))
  flops = lambda fn, *args: fn.lower(*args).cost_analysis()['flops']
  many = flops(run, tiny.params, tiny.images, delta, slots)
  one = jax.jit(lambda *args: tiny.model.apply(*args, peft=peft))
  assert many < 1.05 * flops(one, tiny.params, tiny.images, take(delta, 0))


def test_weights_are_not_copied_for_each_example(tiny):
  with pytest.raises(ValueError, match='one at a time'):
    per_example(tiny.model.apply, bitfit())
