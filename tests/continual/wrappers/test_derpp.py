import jax
import numpy as np
import pytest

from pecft_jax.continual import derpp, er, finetune
from pecft_jax.continual.memory.buffer import sample
from pecft_jax.peft import lora

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, shaken

FC = lora('fc$', rank=2)
INNER = finetune(TOY, CAPACITY, peft=FC)


def made(offers=4, inner=INNER, **options):
  method = derpp(inner, size=11, **options)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  outs = []
  for i in range(offers):
    some = batch(TOY.inputs.shape, CLASSES[0], i)
    _, out = method.loss(params, memory, env(frozen, 0), some, jax.random.key(i))
    where = env(frozen, 0)
    _, memory = method.observe(params, memory, where, some, out, None, jax.random.key(i))
    outs.append(out)
  return method, shaken(params, 6), memory, env(frozen, 1), outs


def test_adds_stored_logits_and_labels_on_two_independent_draws():
  method, params, memory, where, _ = made(alpha=0.3, beta=0.7)
  some, key = batch(TOY.inputs.shape, CLASSES[1], 9), jax.random.key(3)
  loss, out = method.loss(params, memory, where, some, key)
  plain, same = INNER.loss(params, {}, where, some, None)
  equal(out, same)
  keys = jax.random.split(key, 4)
  dark, _ = sample(memory['buffer'], 5, keys[1])
  other, _ = sample(memory['buffer'], 5, keys[2])
  assert not np.array_equal(dark['y'], other['y']) or not np.array_equal(dark['x'], other['x'])
  logits = lambda x: np.asarray(INNER.forward(params, {}, where, x, None).logits, np.float64)
  squares = ((logits(dark['x']) - dark['z']) ** 2).mean()  # Over examples and all C logits.
  log_p = jax.nn.log_softmax(logits(other['x'])[:, :5])
  entropy = -np.asarray(log_p)[np.arange(5), other['y']].mean()
  np.testing.assert_allclose(loss, plain + 0.3 * squares + 0.7 * entropy, rtol=1e-5)


def test_the_squared_error_matches_torch():
  torch = pytest.importorskip('torch')
  method, params, memory, where, _ = made(alpha=1.0, beta=0.0)
  some, key = batch(TOY.inputs.shape, CLASSES[1], 9), jax.random.key(3)
  loss, _ = method.loss(params, memory, where, some, key)
  plain, _ = INNER.loss(params, {}, where, some, None)
  dark, _ = sample(memory['buffer'], 5, jax.random.split(key, 4)[1])
  logits = INNER.forward(params, {}, where, dark['x'], None).logits
  want = torch.nn.functional.mse_loss(
    torch.tensor(np.asarray(logits)), torch.tensor(np.asarray(dark['z']))
  )
  np.testing.assert_allclose(loss - plain, want, rtol=1e-4)


def test_keeps_the_logits_of_the_time_with_their_example():
  _, _, memory, _, outs = made()
  known = {}
  for i, out in enumerate(outs):
    some = batch(TOY.inputs.shape, CLASSES[0], i)
    for x, y, z in zip(some.x[:4], some.y[:4], np.asarray(out.logits)[:4], strict=True):
      known[x.tobytes()] = (int(y), z)
  items = memory['buffer'].items
  for x, y, z in zip(*(np.asarray(items[name]) for name in 'xyz'), strict=True):
    assert known[x.tobytes()][0] == y
    np.testing.assert_allclose(known[x.tobytes()][1], z, atol=1e-6)


def test_an_empty_buffer_adds_nothing():
  method, params, memory, where, _ = made(offers=0)
  some = batch(TOY.inputs.shape, CLASSES[1], 9)
  loss, _ = method.loss(params, memory, where, some, jax.random.key(3))
  plain, _ = INNER.loss(params, {}, where, some, None)
  np.testing.assert_allclose(loss, plain, rtol=1e-6)


def test_replay_goes_through_the_model_and_not_the_inner_wrapper_s_loss():
  """The outputs of an inner wrapper are those of its method: logits are stored once."""
  method, params, memory, where, outs = made(inner=er(INNER, size=3), offers=2)
  assert set(memory) == {'inner', 'buffer'} and set(memory['inner']) == {'inner', 'buffer'}
  assert outs[0].logits.shape == (5, 7)
  assert memory['inner']['buffer'].count == memory['buffer'].count == 8
