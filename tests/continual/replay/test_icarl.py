import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import er, icarl
from pecft_jax.continual.memory.herding import Exemplars, blocks
from pecft_jax.peft import lora
from pecft_jax.problems import next_tokens
from pecft_jax.train.update import with_stored
from pecft_jax.typing import Capacity

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, shaken, task

FC = lora('fc$', rank=2)
SIZE = 13
METHOD = icarl(TOY, CAPACITY, peft=FC, size=SIZE, candidates=30)
KEY = jax.random.key(0)


def started():
  frozen = frozen_of(TOY)
  params, memory = METHOD.init(KEY, frozen)
  return frozen, shaken(params, 5), {**memory, 'teacher': shaken(params, 6)}


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.mark.parametrize('t', [0, 2])
def test_targets_are_the_old_model_for_old_classes_and_the_label_for_new_ones(t):
  frozen, params, memory = started()
  where = env(frozen, t)
  some = batch(TOY.inputs.shape, CLASSES[t], 3)
  loss, out = METHOD.loss(params, memory, where, some, None)
  p = sigmoid(out.logits)
  targets = np.eye(7)[some.y]
  if t:
    before = METHOD.forward(memory['teacher'], memory, where, some.x, None).logits
    targets[:, :5] = sigmoid(before)[:, :5]
  each = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
  seen = 7 if t == 2 else 2
  want = each[:, :seen].sum(1)[np.asarray(some.valid)].mean()
  np.testing.assert_allclose(loss, want, rtol=1e-5)


def gathered(t, params, memory, frozen, n=23, size=5):
  """A whole task after training, in batches of some rows; images and labels of its data."""
  rng = np.random.default_rng(t)
  labels = rng.choice(CLASSES[t], n).astype(np.int32)
  images = rng.integers(0, 255, (n, *TOY.inputs.shape), np.uint8)
  where = env(frozen, t)

  def batches():
    for at in range(0, n, size):
      rows = np.arange(at, at + size)
      some = batch(TOY.inputs.shape, CLASSES[t], at)
      valid = rows < n
      rows = np.where(valid, rows, 0)
      yield some._replace(x=images[rows], y=labels[rows], index=rows.astype(np.int32), valid=valid)

  for each in batches():
    memory = jax.jit(METHOD.consolidate)(params, memory, where, each)
  (once, gather) = METHOD.phases
  _, memory = once.hook(params, memory, where, KEY)
  for each in batches():
    memory = gather.hook(params, memory, where, each)
  _, memory = METHOD.end_task(params, memory, where)
  return memory, images, labels


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def features(params, memory, frozen, images):
  out = METHOD.forward(params, memory, env(frozen, 0), images, None)
  return unit(np.asarray(out.features, np.float64))


def test_two_tasks_leave_the_herded_exemplars_of_all_classes_and_their_means():
  frozen, params, memory = started()
  kept, data = {}, {}
  for t in range(2):
    memory, images, labels = gathered(t, params, memory, frozen)
    for c in CLASSES[t]:
      data[c] = images[labels == c]
  share = SIZE // 5
  for c, own in data.items():
    f = features(params, memory, frozen, own)
    chosen: list[int] = []
    for k in range(1, share + 1):
      away = ((f.mean(0) - (f + f[chosen].sum(0)) / k) ** 2).sum(1)
      away[chosen] = np.inf
      chosen.append(int(away.argmin()))
    kept[c] = own[chosen]
  buffer = memory['buffer']
  np.testing.assert_array_equal(buffer.label, np.repeat([*range(5), -1], [share] * 5 + [3]))
  for c in range(5):
    np.testing.assert_array_equal(buffer.items['x'][c * share : (c + 1) * share], kept[c])
    mean = unit(features(params, memory, frozen, kept[c]).mean(0))
    np.testing.assert_allclose(memory['means'][c], mean, atol=1e-5)
  # What was held for the choice is given up.
  assert not np.asarray(memory['candidates'].filled).any() and not memory['counts'].any()
  equal(memory['teacher'], params)


def test_answers_the_nearest_mean_of_exemplars():
  frozen, params, memory = started()
  rng = np.random.default_rng(0)
  means = unit(rng.normal(size=(7, 6)))
  memory = {**memory, 'means': jnp.asarray(means, jnp.float32)}
  some = batch(TOY.inputs.shape, (0, 3), 4, rows=9)
  found = METHOD.predict(params, memory, env(frozen, 1), some.x).argmax(-1)
  f = features(params, memory, frozen, some.x)
  away = ((f[:, None] - means[None, :5]) ** 2).sum(-1)
  np.testing.assert_array_equal(found, away.argmin(1))


def test_an_epoch_visits_each_stored_exemplar_once():
  where = task(2)
  assert METHOD.joined.count(task(0)) == 0
  count = METHOD.joined.count(where)
  assert count == 10  # Of 13 slots, 2 for each of 5 classes.
  own = blocks(SIZE, jnp.asarray(where.past))
  items = {'x': jnp.arange(SIZE * 15, dtype=jnp.uint8).reshape(SIZE, 3, 5, 1)}
  label = own.owner.at[3].set(-1)  # Class 1 has one example only: it comes twice.
  _, _, memory = started()
  memory = {**memory, 'buffer': Exemplars(items, label)}
  x, y = METHOD.joined.read(memory, env(None, 2), jnp.arange(count))
  np.testing.assert_array_equal(y, np.repeat(range(5), 2))
  np.testing.assert_array_equal(x, items['x'][np.array([0, 1, 2, 2, 4, 5, 6, 7, 8, 9])])


@pytest.mark.parametrize('wrapped', [False, True])
def test_rows_of_stored_examples_are_filled_before_any_hook_sees_them(wrapped):
  method = er(METHOD, size=3) if wrapped else METHOD
  frozen = frozen_of(TOY)
  _, memory = method.init(KEY, frozen)
  own = memory['inner'] if wrapped else memory
  own['buffer'] = Exemplars(
    {'x': jnp.arange(SIZE * 15, dtype=jnp.uint8).reshape(SIZE, 3, 5, 1)},
    blocks(SIZE, jnp.asarray(task(1).past)).owner,
  )
  some = batch(TOY.inputs.shape, CLASSES[1], 0)._replace(slot=np.array([-1, 7, -1, 0, -1]))
  found = jax.tree.map(np.asarray, with_stored(method, memory, env(frozen, 1), some))
  np.testing.assert_array_equal(found.x[[0, 2, 4]], some.x[[0, 2, 4]])
  np.testing.assert_array_equal(found.x[[1, 3]], own['buffer'].items['x'][np.array([7, 0])])
  np.testing.assert_array_equal(found.y[[1, 3]], [1, 0])
  np.testing.assert_array_equal(found.index[[1, 3]], [-1, -1])
  assert with_stored(method, memory, env(frozen, 1), some._replace(slot=None)).slot is None


def test_what_cannot_be_is_refused_at_construction():
  with pytest.raises(ValueError, match='size must be at least 7, got 6'):
    icarl(TOY, CAPACITY, peft=FC, size=6)
  with pytest.raises(ValueError, match='candidates must be at least 1'):
    icarl(TOY, CAPACITY, peft=FC, candidates=0)
  with pytest.raises(ValueError, match='icarl needs classes, but the problem is next_tokens'):
    icarl(TOY, Capacity(3, 7, next_tokens(4)), peft=FC)
