"""Adapters trained together, against each trained alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny_runs import SIZE, tiny_backbone, tiny_frozen

from pecft_jax.peft import bank, lora, per_example, take
from pecft_jax.train import many_adapters

NUMBER, CLASSES, STEPS, ROWS = 3, 4, 5, 6
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(1e-2, weight_decay=0.1))
PEFT = lora('q$', rank=2)


def batches():
  """Mixed batches; the second adapter is in no even one, and the third has invalid rows."""
  for step in range(STEPS):
    keys = jax.random.split(jax.random.key(step), 2)
    x = jax.random.normal(keys[0], (ROWS, SIZE, SIZE, 1))
    y = jax.random.randint(keys[1], (ROWS,), 0, CLASSES)
    slots = jnp.array([0, 1, 2, 0, 2, 2] if step % 2 else [0, 0, 2, 0, 2, 2])
    yield x, y, slots, jnp.array([True] * 5 + [step % 2 == 0])


def started(model, frozen):
  delta = bank(PEFT, NUMBER).init(jax.random.key(0), model.sites, frozen)
  noise = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape)
  head = 0.3 * jax.random.normal(jax.random.key(2), (NUMBER, model.width, CLASSES))
  return {'delta': jax.tree.map(noise, delta), 'head': head}


def test_each_adapter_ends_where_it_does_alone():
  model, frozen = tiny_backbone(), tiny_frozen()
  features = per_example(model.apply, PEFT)

  def losses(params, frozen, x, y, slots):
    h = features(frozen, x, params['delta'], slots).pooled
    logits = jnp.einsum('bd,bdc->bc', h, take(params['head'], slots))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)

  def loss_alone(params, x, y):
    h = model.apply(frozen, x, params['delta'], peft=PEFT).pooled
    return optax.softmax_cross_entropy_with_integer_labels(h @ params['head'], y).mean()

  together = many_adapters(losses, OPTIMIZER)
  step = jax.jit(together.step)
  state = together.init(started(model, frozen))
  alone = [take(started(model, frozen), n) for n in range(NUMBER)]
  opt = [OPTIMIZER.init(params) for params in alone]
  for x, y, slots, valid in batches():
    poisoned = jnp.where(valid.reshape(-1, 1, 1, 1), x, jnp.inf)
    state, log = step(state, frozen, poisoned, y, slots, valid)
    for n in range(NUMBER):
      rows = np.flatnonzero((slots == n) & valid)
      assert log.counts[n] == len(rows)
      if not len(rows):
        assert log.losses[n] == 0
        continue
      loss, grads = jax.value_and_grad(loss_alone)(alone[n], x[rows], y[rows])
      np.testing.assert_allclose(log.losses[n], loss, rtol=1e-5)
      updates, opt[n] = OPTIMIZER.update(grads, opt[n], alone[n])
      alone[n] = optax.apply_updates(alone[n], updates)
  assert step._cache_size() == 1
  for n in range(NUMBER):
    got = jax.tree.leaves((take(state.params, n), take(state.opt_state, n)))
    for one, other in zip(got, jax.tree.leaves((alone[n], opt[n])), strict=True):
      # Adam divides by small gradients, whose digits depend on the order of sums.
      np.testing.assert_allclose(one, other, atol=2e-4)
