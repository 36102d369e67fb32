import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ssiat
from pecft_jax.continual.adapters.ssiat import Shift, added
from pecft_jax.peft import lora

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, run, shaken

torch = pytest.importorskip('torch')

FC = lora('fc$', rank=2)
PAST = (0, 1)  # Of task 1.


def features(frozen, delta, x):
  """The toy with a LoRA [B, 6], in torch."""
  wide = lambda a: a if torch.is_tensor(a) else torch.tensor(np.asarray(a, np.float64))
  kernel, bias = (wide(frozen['block_0']['fc'][name]) for name in ('kernel', 'bias'))
  flat = ((wide(x) / 255 - 0.5) / 0.25).reshape(len(x), -1)
  return torch.tanh(flat @ (kernel + 2 * wide(delta.a) @ wide(delta.b)) + bias)


def made():
  """A method in task 1 that knows the classes of task 0, and where it stands."""
  frozen, method = frozen_of(TOY), ssiat(TOY, CAPACITY, peft=FC, spread=0.8, shrinkage=0.01)
  params, memory = method.init(jax.random.key(0), frozen)
  mean = 0.7 * np.random.default_rng(3).normal(size=(7, 6)) * np.isin(np.arange(7), PAST)[:, None]
  known = memory['gaussians']._replace(mean=jnp.float32(mean))
  where = env(frozen, 1)
  params, memory = method.begin_task(
    shaken(params, 4, 0.3), {**memory, 'gaussians': known}, where, jax.random.key(1)
  )
  return method, params, memory, where


def test_old_means_move_as_new_features_near_them_did():
  method, params, memory, where = made()
  after = shaken(params, 5, 0.3)
  batches = [batch(TOY.inputs.shape, CLASSES[1], seed, rows=9) for seed in (1, 2)]
  now, consolidate = memory, jax.jit(method.consolidate)
  for some in batches:
    now = consolidate(after, now, where, some)
  _, done = jax.jit(method.phases[0].hook)(after, now, where, jax.random.key(0))
  x = np.concatenate([some.x[some.valid] for some in batches])
  old, new = (
    features(where.frozen, each['delta']['block_0/fc'], x).numpy() for each in (params, after)
  )
  start = np.asarray(memory['gaussians'].mean, np.float64)
  for c in PAST:
    weights = np.exp(-((old - start[c]) ** 2).sum(1) / (2 * 0.8**2)) + 1e-5
    want = start[c] + (weights[:, None] * (new - old)).sum(0) / weights.sum()
    np.testing.assert_allclose(done['gaussians'].mean[c], want, atol=1e-5)
    assert np.abs(want - start[c]).max() > 0.01
  y = np.concatenate([some.y[some.valid] for some in batches])
  for c in CLASSES[1]:  # Those of the task are where their features are now.
    np.testing.assert_allclose(done['gaussians'].mean[c], new[y == c].mean(0), atol=1e-5)
  assert not any(np.asarray(leaf).any() for leaf in done['shift'])


def test_padded_rows_and_classes_of_the_task_have_no_weight():
  rng = np.random.default_rng(0)
  mean, before, now = (jnp.float32(rng.normal(size=(n, 4))) for n in (3, 5, 5))
  valid, old = np.array([1, 1, 0, 1, 0], bool), np.array([1, 0, 1], bool)
  none = Shift(jnp.zeros(3), jnp.zeros((3, 4)))
  found = added(none, mean, before, now, valid, old, 1.0)
  kept = added(none, mean, before[valid], now[valid], valid[valid], old, 1.0)
  np.testing.assert_allclose(found.moves, kept.moves, rtol=1e-5)
  assert np.asarray(found.weights > 0).tolist() == old.tolist()


def test_the_loss_is_local_and_of_cosines_times_twenty():
  method, params, memory, where = made()
  assert float(method.init(jax.random.key(0), where.frozen)[0]['head'].scale.value) == 20
  some = batch(TOY.inputs.shape, CLASSES[1], 3)
  (loss, _), slopes = jax.value_and_grad(method.loss, has_aux=True, allow_int=True)(
    params, memory, where, some, None
  )
  wide = lambda a: torch.tensor(np.asarray(a, np.float64)).requires_grad_()
  delta, kernel = jax.tree.map(wide, params['delta']['block_0/fc']), wide(params['head'].kernel)
  h = features(where.frozen, delta, some.x)
  unit = lambda a, dim: a / a.norm(dim=dim, keepdim=True)
  logits = float(params['head'].scale.value) * unit(h, 1) @ unit(kernel, 0)
  valid = torch.tensor(some.valid)
  right = torch.tensor(np.asarray(some.y, np.int64))[valid] - CLASSES[1][0]
  wanted = torch.nn.functional.cross_entropy(logits[valid][:, list(CLASSES[1])], right)
  wanted.backward()
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
  np.testing.assert_allclose(slopes['head'].kernel, kernel.grad, atol=1e-5)
  for slope, leaf in zip(slopes['delta']['block_0/fc'], delta, strict=True):
    np.testing.assert_allclose(slope, leaf.grad, atol=1e-4)


def test_a_task_starts_from_the_delta_of_the_last_and_remembers_it():
  ran = run(ssiat(TOY, CAPACITY, peft=FC, samples=6), TOY)
  for t in (1, 2):
    before = ran.last('end', t - 1).state.params['delta']
    state = ran.last('begin', t).state
    equal(state.params['delta'], before)
    equal(state.memory['before'], before)
    equal(ran.last('end', t).state.memory['before'], before)
  roots = lambda t: ran.last('end', t).state.memory['gaussians'].spread
  old = list(CLASSES[0])
  equal(roots(2)[old, :], roots(0)[old, :])  # Covariances stay.


def test_a_spread_of_zero_is_refused():
  with pytest.raises(ValueError, match='spread must be positive'):
    ssiat(TOY, CAPACITY, peft=FC, spread=0.0)
