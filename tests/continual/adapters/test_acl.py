import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import acl
from pecft_jax.heads import cosine
from pecft_jax.peft import adaptformer, lora
from pecft_jax.typing import Given, Update

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, shaken

KEY = jax.random.key(4)
FC = lora('fc$', rank=2)
SIZES = dict(size=14, candidates=30, epochs=2, batch_size=5)


def made(t=1, **options):
  """A method in task t, with adapters of the tasks before; params, memory, and where it stands."""
  method = acl(TOY, CAPACITY, **{'peft': FC, **SIZES, **options})
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  past = lambda a: jnp.where((jnp.arange(3) < t).reshape(3, *[1] * (a.ndim - 1)), a, 0)
  memory = {**memory, 'bank': jax.tree.map(past, shaken(memory['bank'], 6, 0.5))}
  for i in range(t + 1):
    params, memory = method.begin_task(params, memory, env(frozen, i), jax.random.key(i))
  return method, shaken(params, 5, 0.5), stored(memory, t), env(frozen, t)


def stored(memory, t):
  """Memory with examples of all classes so far."""
  classes = sum(CLASSES[: t + 1], ())
  rows = batch(TOY.inputs.shape, classes, 9, rows=12)
  buffer = memory['buffer']
  items = {'x': buffer.items['x'].at[:12].set(rows.x)}
  return {**memory, 'buffer': buffer._replace(items=items, label=buffer.label.at[:12].set(rows.y))}


def test_a_task_starts_from_the_adapter_before_with_a_fresh_head():
  method, params, memory, where = made()
  after, _ = method.begin_task(params, memory, env(where.frozen, 2), KEY)
  equal((after['delta'], after['head']), (params['delta'], params['head']))
  assert not any(np.asarray(leaf).any() for leaf in after['new'])
  assert after['new'].kernel.shape == (6, 7 + 3)


def test_updates_leave_the_tuned_heads_as_they_are():
  method, params, memory, where = made()
  some = batch(TOY.inputs.shape, (0, 2, 3), 3)
  grads = jax.grad(lambda p: method.loss(p, memory, where, some, None)[0])(params)
  assert not any(np.asarray(leaf).any() for leaf in grads['head'])
  assert all(np.asarray(grads['new'].kernel)[:, [2, 3, 4, 8]].any(0))
  assert not np.delete(np.asarray(grads['new'].kernel), [2, 3, 4, 8], 1).any()
  decayed = jax.tree.map(lambda leaf: 0.9 * leaf, params)
  after, _ = method.observe(decayed, memory, where, some, None, Update(None, params), KEY)
  equal(after, {**decayed, 'head': params['head']})


def test_the_first_task_keeps_its_head_and_later_ones_start_afresh_for_the_tuning():
  start = lambda method: method.phases[2]
  method, params, memory, where = made(0)
  assert [phase.name for phase in method.phases] == ['herd', 'fetch', 'heads', 'tune']
  after, _ = start(method).hook(params, memory, where, KEY)
  equal(after, {**params, 'head': params['new']})
  method, params, memory, where = made(1)
  after, _ = start(method).hook(params, memory, where, KEY)
  kernel = np.array(params['head'].kernel)
  kernel[:, [2, 3, 4, 8]] = 0  # A linear head starts at zero.
  np.testing.assert_array_equal(after['head'].kernel, kernel)


def test_a_cosine_head_keeps_its_scale_from_the_first_task_on():
  method, params, memory, where = made(1, head=cosine(scale=3.0))
  after, _ = method.phases[2].hook(params, memory, where, KEY)
  assert after['head'].scale == params['head'].scale
  moved = (np.asarray(after['head'].kernel) != params['head'].kernel).any(0)
  assert np.flatnonzero(moved).tolist() == [2, 3, 4, 8]


def test_tuning_is_from_the_second_task_on_for_epochs_of_the_buffer():
  tune = acl(TOY, CAPACITY, peft=FC, **SIZES).phases[3]
  assert tune.trains == ('head',) and tune.steps(None) == 2 * 3
  assert not tune.when(0) and tune.when(1)


def test_a_given_task_answers():
  method, params, memory, where = made(2)
  some = batch(TOY.inputs.shape, CLASSES[2], 3)
  known = Given(some.x, task=np.array([0, 1, 2, 0, 1], np.int32))
  answers = method.predict(params, memory, where, known).argmax(1)
  assert all(int(c) in CLASSES[t] for c, t in zip(answers, known.task, strict=True))


def test_loss_tuning_and_gradients_are_those_of_the_equations():
  torch = pytest.importorskip('torch')
  from .toy import features, trained

  method, params, memory, where = made(1)
  some = batch(TOY.inputs.shape, (0, 2, 3, 4), 3)
  loss = lambda p: method.loss(p, memory, where, some, None)
  (value, out), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  mine, valid = trained(params), torch.tensor(some.valid)
  h = features(where.frozen, mine['delta'], some.x)
  logits = (h @ mine['new'].kernel + mine['new'].bias)[:, [2, 3, 4, 8]]
  right = torch.tensor([y - 2 if y > 1 else 3 for y in some.y])
  want = torch.nn.functional.cross_entropy(logits[valid], right[valid])
  want.backward()
  np.testing.assert_allclose(out.features, h.detach(), atol=1e-5)
  np.testing.assert_allclose(value, want.item(), rtol=1e-5)
  for name in ('delta', 'new'):
    for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(mine[name]), strict=True):
      np.testing.assert_allclose(a, b.grad, atol=1e-5)

  # All that is stored, so that no draw decides: 12 rows, and 2 that are empty.
  method, params, memory, where = made(1, batch_size=14)
  tune = method.phases[3]
  part = lambda head: tune.loss({**params, 'head': head}, memory, where, None, KEY)
  value, found = jax.jit(jax.value_and_grad(part))(params['head'])
  head, total = trained(params['head']), 0.0
  x, y = np.asarray(memory['buffer'].items['x'][:12]), np.asarray(memory['buffer'].label[:12])
  first = jax.tree.map(lambda leaf: leaf[0], memory['bank'])
  for delta, own, other in ((first, [0, 1], 7), (params['delta'], [2, 3, 4], 8)):
    h = features(where.frozen, delta, x)
    logits = (h @ head.kernel + head.bias)[:, [*own, other]]
    right = torch.tensor([own.index(c) if c in own else len(own) for c in y])
    total = total + torch.nn.functional.cross_entropy(logits, right)
  total.backward()
  np.testing.assert_allclose(value, total.item(), rtol=1e-5)
  for a, b in zip(found, head, strict=True):
    np.testing.assert_allclose(a, b.grad, atol=1e-5)

  # The head that gives the least to others answers, each under the adapter of its task.
  shares = []
  for delta, columns in ((first, [0, 1, 7]), (params['delta'], [2, 3, 4, 8])):
    h = features(where.frozen, delta, some.x)
    logits = (h @ head.kernel + head.bias)[:, columns]
    shares.append(torch.softmax(logits, 1).detach().numpy())
  answers = [
    (0 if a[-1] < b[-1] else 2) + int((a if a[-1] < b[-1] else b)[:-1].argmax())
    for a, b in zip(*shares, strict=True)
  ]
  found = method.predict(params, memory, where, some.x)
  assert found.argmax(1).tolist() == answers


def test_sizes_that_cannot_be_are_refused():
  with pytest.raises(ValueError, match='size must be at least 7, got 6'):
    acl(TOY, CAPACITY, peft=FC, size=6, batch_size=2)
  with pytest.raises(ValueError, match='size must be at least 32, got 20'):
    acl(TOY, CAPACITY, peft=FC, size=20)
  with pytest.raises(ValueError, match='epochs must be at least 1, got 0'):
    acl(TOY, CAPACITY, peft=FC, epochs=0)
  with pytest.raises(ValueError, match="no 'sublayer' site matches"):
    acl(TOY, CAPACITY, peft=adaptformer())
