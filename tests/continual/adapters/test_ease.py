import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ease
from pecft_jax.continual.adapters.ease import completed
from pecft_jax.peft import linear_probe, lora, take

from ..tiny import CAPACITY, CLASSES, TOY, batch, close, env, equal, frozen_of, shaken

FC = lora('fc$', rank=2)
DOMAINS = ((0, 1, 2), (1, 2, 3), (0, 3, 4))  # Classes come back in later tasks.


def learnt(classes=CLASSES, alpha=0.1):
  """A method after all tasks with random deltas; also all batches, by task."""
  method = ease(TOY, CAPACITY, peft=FC, alpha=alpha)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  hooks = {name: jax.jit(getattr(method, name)) for name in ('consolidate', 'end_task')}
  history, batches = [], []
  for t, labels in enumerate(classes):
    where = env(frozen, t, classes)
    params, memory = method.begin_task(params, memory, where, jax.random.key(t))
    params = shaken(params, 5 + t, 0.5)
    batches.append([batch(TOY.inputs.shape, labels, 10 * t + i, rows=9) for i in range(2)])
    for some in batches[-1]:
      memory = hooks['consolidate'](params, memory, where, some)
    params, memory = hooks['end_task'](params, memory, where)
    history.append((params, memory))
  return method, frozen, history, batches


@pytest.fixture(scope='module')
def sequence():
  return learnt()


@pytest.fixture(scope='module')
def returning():
  return learnt(DOMAINS)


def features(frozen, delta, x):
  """The toy with a LoRA, in numpy."""
  weights = {name: np.asarray(a, np.float64) for name, a in frozen['block_0']['fc'].items()}
  a, b = (np.asarray(leaf, np.float64) for leaf in delta['block_0/fc'])
  flat = ((np.asarray(x) / 255 - 0.5) / 0.25).reshape(len(x), -1)
  return np.tanh(flat @ (weights['kernel'] + 2 * a @ b) + weights['bias'])


def direction(a):
  return a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-9)


def reference(frozen, memory, batches, classes, upto):
  """Prototypes [T, C, D] after task `upto`, by plain loops: means, then mixtures."""
  means, known = np.zeros((3, 7, 6)), np.zeros((3, 7), bool)
  home = {}
  for t in range(upto + 1):
    for c in classes[t]:
      home.setdefault(c, t)
  for j in range(upto + 1):
    delta = take(memory.bank, j)
    seen = [some for t in range(j, upto + 1) for some in batches[t]]
    x = np.concatenate([s.x[s.valid] for s in seen])
    y = np.concatenate([s.y[s.valid] for s in seen])
    for c in set(y.tolist()):
      means[j, c], known[j, c] = features(frozen, delta, x[y == c]).mean(0), True
  out = means.copy()
  for c, i in home.items():
    for j in range(upto + 1):
      if known[j, c]:
        continue
      donors = [k for k in range(7) if known[j, k]]
      cosine = np.array([direction(means[i, c]) @ direction(means[i, k]) for k in donors])
      weights = np.exp(cosine) / np.exp(cosine).sum()
      out[j, c] = weights @ means[j, donors]
  return out


@pytest.mark.parametrize('upto', range(3))
@pytest.mark.parametrize('which', ['sequence', 'returning'])
def test_prototypes_are_class_means_or_mixtures_of_newer_classes(request, which, upto):
  _, frozen, history, batches = request.getfixturevalue(which)
  classes = CLASSES if which == 'sequence' else DOMAINS
  want = reference(frozen, history[-1][1], batches, classes, upto)
  close(history[upto][1].prototypes, want.astype(np.float32), atol=1e-5)


def test_mixtures_are_made_anew_from_ever_more_classes(sequence):
  _, _, history, _ = sequence
  before, after = history[1][1].prototypes, history[2][1].prototypes
  old = list(CLASSES[0])
  assert np.abs(before[1, old] - after[1, old]).max() > 1e-4
  equal(after[0, old], before[0, old])


@pytest.mark.parametrize('alpha', [0.1, 0.0, 0.7])
def test_prediction_weighs_the_own_subspace_against_all_others(sequence, alpha):
  _, frozen, history, _ = sequence
  method = ease(TOY, CAPACITY, peft=FC, alpha=alpha)
  params, memory = history[2]
  x = batch(TOY.inputs.shape, range(7), 77).x
  want = np.zeros((5, 7))
  for j in range(3):
    query = direction(features(frozen, take(memory.bank, j), x))
    for i, classes in enumerate(CLASSES):
      for c in classes:
        weight = 1 if i == j else alpha / 2
        want[:, c] += weight * query @ direction(np.asarray(memory.prototypes[j, c]))
  found = jax.jit(method.predict)(params, memory, env(frozen, 2), x)
  np.testing.assert_allclose(found, want, atol=1e-4)


def test_all_tasks_that_a_class_came_with_are_its_own(returning):
  method, frozen, history, _ = returning
  params, memory = history[2]
  x = batch(TOY.inputs.shape, range(5), 77).x
  want = np.full((5, 7), -np.inf)
  for c in range(5):
    own = [j for j in range(3) if c in DOMAINS[j]]
    want[:, c] = 0
    for j in range(3):
      query = direction(features(frozen, take(memory.bank, j), x))
      weight = 1 / len(own) if j in own else 0.1 / 2
      want[:, c] += weight * query @ direction(np.asarray(memory.prototypes[j, c]))
  found = jax.jit(method.predict)(params, memory, env(frozen, 2, DOMAINS), x)
  np.testing.assert_allclose(found, want, atol=1e-4)


def test_trains_each_task_apart_from_all_others(sequence):
  method, frozen, history, _ = sequence
  params, memory = history[1]
  fresh, after = method.begin_task(params, memory, env(frozen, 2), jax.random.key(4))
  assert not np.asarray(fresh['delta']['block_0/fc'].b).any()
  assert not np.asarray(fresh['head'].kernel).any()
  equal(after.bank, memory.bank)
  some = batch(TOY.inputs.shape, CLASSES[2], 0)
  alone, _ = method.init(jax.random.key(4), frozen)
  loss = lambda params, memory: method.loss(params, memory, env(frozen, 2), some, None)[0]
  empty = jax.tree.map(jnp.zeros_like, memory)
  np.testing.assert_allclose(loss(fresh, memory), loss(alone, empty), rtol=1e-6)


def test_nothing_is_made_up_for_classes_and_subspaces_not_reached():
  means = jax.random.normal(jax.random.key(0), (3, 7, 6))
  known = np.zeros((3, 7), bool)
  known[0, :5], known[1, 2:5] = True, True
  means = jnp.where(known[..., None], means, 0)
  filled = completed(means, jnp.asarray(known), jnp.array([0, 0, 1, 1, 1, 0, 0]))
  assert np.asarray(filled[1, :2]).any(1).all()
  assert not np.asarray(filled[2]).any() and not np.asarray(filled[:, 5:]).any()


def test_a_prediction_costs_a_pass_per_task():
  method = ease(TOY, CAPACITY, peft=FC)
  assert [method.passes(t) for t in (1, 2, 3)] == [1, 2, 3]


def test_a_transform_without_anything_to_train_is_refused():
  with pytest.raises(ValueError, match='needs a transform that trains something'):
    ease(TOY, CAPACITY, peft=linear_probe())
