"""Online-LoRA, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import online_lora
from pecft_jax.continual.core import normalised
from pecft_jax.continual.lowrank.online_lora import Hardest, Window, watched, with_harder
from pecft_jax.peft import adaptformer, lora
from pecft_jax.train.update import loss_and_grads, updated
from pecft_jax.typing import Batch

from ..tiny import CAPACITY, CLASSES, MODEL, RECIPE, TOY, env, run, shaken

FC = lora('fc$', rank=2, alpha=6)  # A scale of 3.
PATH = 'block_0/fc'
SEEN = ([0, 1], [0, 1, 2, 3, 4], list(range(7)))
# Every window of two losses is a plateau, if the loss has risen since the last.
OFTEN = {
  'size': 3, 'window': 2, 'mean_threshold': 50.0, 'variance_threshold': 50.0, 'strength': 3.0,
  'replay': 2.0,
}  # fmt: skip
PUBLISHED = {'by_factors': True, 'zeroed': True, 'hardest_only': True}
both_forms = pytest.mark.parametrize('options', [{}, PUBLISHED], ids=['correct', 'published'])


def f64(a):
  return np.asarray(a, np.float64)


@functools.cache
def ran(**options):
  return run(online_lora(TOY, CAPACITY, peft=FC, **OFTEN, **options), TOY)


def updates(found):
  """(task, state before, state after, batch, loss) of each update."""
  return [
    (s.task, found.before(s), s.state, s.batch, s.log.loss)
    for s in found.stages
    if s.name == 'train'
  ]


def plateaus(found):
  """Those of `updates` in which there was a plateau."""
  number = lambda state: int(state.memory['plateaus'])
  some = [each for each in updates(found) if number(each[2]) > number(each[1])]
  assert len(some) > 1
  return some


class Reference:
  """The equations in PyTorch, from the state of one update."""

  def __init__(self, frozen, t, by_factors=False):
    self.torch = pytest.importorskip('torch')
    self.weights, self.t, self.by_factors = frozen['block_0']['fc'], t, by_factors

  def tensor(self, a):
    return self.torch.tensor(f64(a))

  def losses(self, params, memory, delta, x, y):
    """Cross-entropies [B] among the classes seen; of its own answers where y is None."""
    a, b = delta
    past = memory['past'][PATH]
    if self.by_factors:
      past = 3 * self.tensor(past.a[0]) @ self.tensor(past.b[0])
    x = self.tensor(normalised(TOY.inputs, jnp.asarray(x))).reshape(len(x), -1)
    w = self.tensor(self.weights['kernel']) + self.tensor(past) + 3 * a @ b
    features = self.torch.tanh(x @ w + self.tensor(self.weights['bias']))
    logits = features @ self.tensor(params['head'].kernel) + self.tensor(params['head'].bias)
    logits = logits[:, SEEN[self.t]]
    y = logits.argmax(1) if y is None else self.torch.tensor(np.asarray(y, np.int64))
    return self.torch.nn.functional.cross_entropy(logits, y, reduction='none')

  def stored(self, memory):
    x, y, count = memory['hardest']
    return np.asarray(x)[: int(count)], np.asarray(y)[: int(count)]

  def data_loss(self, params, memory, delta, some):
    """The loss without the penalty: of valid rows, plus twice that of the stored examples."""
    rows = some.valid
    loss = self.losses(params, memory, delta, some.x[rows], some.y[rows]).mean()
    x, y = self.stored(memory)
    return loss + 2 * self.losses(params, memory, delta, x, y).mean() if len(x) else loss

  def importance(self, params, memory, delta, most):
    """The mean of squared gradients at the model's own answers, for A and B."""
    x, _ = self.stored(memory)
    squares = [self.torch.zeros_like(each) for each in delta]
    for row in x[:most]:
      leaves = [each.detach().requires_grad_() for each in delta]
      (loss,) = self.losses(params, memory, leaves, row[None], None)
      for total, grad in zip(squares, self.torch.autograd.grad(loss, leaves), strict=True):
        total += grad**2
    return [each / max(len(x[:most]), 1) for each in squares]


@both_forms
def test_loss_and_gradients_are_those_of_the_equation(options):
  found = ran(**options)
  t, before, _, some, _ = updates(found)[-1]
  of = Reference(found.frozen, t, bool(options))
  params = shaken(before.params, 8)
  memory = {**before.memory, 'importance': shaken(before.memory['importance'], 9)}
  a, b = (of.tensor(leaf).requires_grad_() for leaf in params['delta'][PATH])
  omega = [of.tensor(leaf) for leaf in memory['importance'][PATH]]
  penalty = 1.5 * ((omega[0] * a**2).sum() + (omega[1] * b**2).sum())
  want = of.data_loss(params, memory, (a, b), some) + penalty
  assert abs(penalty) > 1e-3 and int(memory['hardest'].count) == 3
  want.backward()
  loss = lambda p: found.method.loss(p, memory, env(found.frozen, t), some, None)[0]
  got, grads = jax.jit(jax.value_and_grad(loss))(params)
  np.testing.assert_allclose(got, want.item(), rtol=1e-5)
  np.testing.assert_allclose(grads['delta'][PATH].a, a.grad, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(grads['delta'][PATH].b, b.grad, rtol=1e-4, atol=1e-5)


def test_the_window_holds_losses_without_the_penalty():
  found = ran()
  for t, before, after, some, _ in updates(found):
    of = Reference(found.frozen, t)
    delta = [of.tensor(leaf) for leaf in before.params['delta'][PATH]]
    want = of.data_loss(before.params, before.memory, delta, some).item()
    losses = after.memory['window'].losses
    np.testing.assert_allclose(losses[-1], want, rtol=1e-5)
    assert losses[0] == before.memory['window'].losses[1]


def trained_lora(found, before, after, some, t):
  """Parameters after an update of the recipe, before the LoRA is merged."""
  where = env(found.frozen, t)
  loss = lambda p: found.method.loss(p, before.memory, where, some, None)
  _, grads = jax.jit(lambda params: loss_and_grads(loss, params))(before.params)
  progress = (before.step - before.task.start) / before.task.steps
  about = {'progress': progress, 'last': False, 'steps': 2, 'weight': 4}
  params, _ = updated(RECIPE, before.params, grads, before.opt_state, **about)
  np.testing.assert_allclose(params['head'].kernel, after.params['head'].kernel, atol=1e-5)
  return params


@both_forms
def test_importance_is_the_mean_over_plateaus_of_squared_gradients(options):
  found = ran(**options)
  for t, before, after, some, _ in plateaus(found)[:2]:
    of, n = Reference(found.frozen, t, bool(options)), int(after.memory['plateaus'])
    params = trained_lora(found, before, after, some, t)
    delta = [of.tensor(leaf) for leaf in params['delta'][PATH]]
    more = of.importance(params, before.memory, delta, 1 if options else 3)
    for old, new, got in zip(
      before.memory['importance'][PATH], more, after.memory['importance'][PATH], strict=True
    ):
      want = new / n + (1 - 1 / n) * of.tensor(old)
      np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_a_plateau_merges_the_lora_and_starts_another():
  found = ran()
  for t, before, after, some, _ in plateaus(found):
    a, b = (f64(leaf) for leaf in trained_lora(found, before, after, some, t)['delta'][PATH])
    want = f64(before.memory['past'][PATH]) + 3 * a @ b
    np.testing.assert_allclose(after.memory['past'][PATH], want, rtol=1e-4, atol=1e-5)
    new = after.params['delta'][PATH]
    assert not np.asarray(new.b).any() and not np.allclose(new.a, a, atol=0.05)


def test_without_a_plateau_nothing_is_merged():
  _, before, after, *_ = updates(ran())[0]  # With one loss, the window is not full.
  assert int(after.memory['plateaus']) == 0 and not np.asarray(after.memory['past'][PATH]).any()
  a = before.params['delta'][PATH].a
  np.testing.assert_allclose(after.params['delta'][PATH].a, a, atol=0.02)  # The rate is 0.01.


def test_as_published_a_new_lora_has_no_gradient():
  found = ran(**PUBLISHED)
  loss = lambda p, after, where, some: found.method.loss(p, after.memory, where, some, None)[0]
  gradient = jax.jit(jax.grad(loss))
  for t, _, after, some, _ in plateaus(found):
    grads = gradient(after.params, after, env(found.frozen, t), some)['delta']
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_as_published_sums_of_factors_have_products_across_plateaus():
  found = ran(**PUBLISHED)
  t, before, after, some, _ = plateaus(found)[1]
  a, b = (f64(leaf) for leaf in trained_lora(found, before, after, some, t)['delta'][PATH])
  old = before.memory['past'][PATH]
  sums = f64(old.a[0]) + a, f64(old.b[0]) + b
  for want, got in zip(sums, after.memory['past'][PATH], strict=True):
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)
  found_change = found.method.adapted(after.params, after.memory, env(found.frozen, t)).delta[PATH]
  now = after.params['delta'][PATH]
  want = 3 * sums[0] @ sums[1] + 3 * f64(now.a) @ f64(now.b)
  np.testing.assert_allclose(found_change, want, rtol=1e-4, atol=1e-5)


def test_the_hardest_examples_are_stored_in_order():
  hardest = Hardest(jnp.arange(3)[:, None], jnp.arange(3), jnp.array(2, jnp.int32))
  some = Batch(10 + np.arange(4)[:, None], 10 + np.arange(4), np.array([1, 1, 1, 0], bool), None)
  new = with_harder(hardest, jnp.array([0.5, 3.0, 99.0]), some, jnp.array([1.0, 0.1, 4.0, 50.0]))
  assert new.y.tolist() == [12, 1, 10] and new.x[:, 0].tolist() == [12, 1, 10]
  assert int(new.count) == 3


def test_slots_without_an_example_stay_empty():
  hardest = Hardest(jnp.zeros((4, 1)), jnp.zeros(4, int), jnp.zeros((), jnp.int32))
  some = Batch(np.ones((3, 1)), np.full(3, 5), np.array([True, False, True]), None)
  new = with_harder(hardest, jnp.zeros(4), some, jnp.ones(3))
  assert int(new.count) == 2 and new.y.tolist() == [5, 5, 0, 0]
  assert new.x[:, 0].tolist() == [1, 1, 0, 0]


def detected(losses, size, mean_threshold, variance_threshold):
  """Plateaus, in plain Python."""
  window, found, risen, last = [], [], True, (0.0, 0.0)
  for loss in losses:
    window = [*window, loss][-size:]
    mean, variance = np.mean(window), np.var(window)
    if mean > last[0] + np.sqrt(last[1]):
      risen = True
    low = mean < mean_threshold and variance < variance_threshold
    found.append(bool(low and risen and len(window) == size))
    if found[-1]:
      last, risen = (mean, variance), False
  return found


@pytest.mark.parametrize('size', [1, 3, 5])
def test_plateaus_are_those_of_the_rule(size):
  rng = np.random.default_rng(size)
  losses = np.concatenate([rng.normal(level, 0.2, 12) for level in (5, 2, 3, 1, 4, 1)])
  zero = jnp.zeros(())
  state = Window(jnp.zeros(size), jnp.zeros((), jnp.int32), zero, zero, jnp.ones((), bool))
  step = jax.jit(lambda state, loss: watched(state, loss, 3.5, 0.2))
  found = []
  for loss in losses:
    state, plateau = step(state, loss)
    found.append(bool(plateau))
  want = detected(losses, size, 3.5, 0.2)
  assert found == want and 2 <= sum(want) < 30


@pytest.mark.parametrize('options', [
  {'strength': -1.0}, {'replay': -1.0}, {'size': 0}, {'window': 0}, {'mean_threshold': 0.0},
  {'variance_threshold': 0.0},
])  # fmt: skip
def test_impossible_options_are_refused(options):
  with pytest.raises(ValueError):
    online_lora(TOY, CAPACITY, peft=FC, **options)


def test_other_transforms_are_refused():
  with pytest.raises(ValueError, match='Online-LoRA needs a transform whose delta is LoRA factors'):
    online_lora(MODEL, CAPACITY, peft=adaptformer(width=3))


def test_no_task_boundary_changes_anything():
  for t in range(1, len(CLASSES)):
    ended, begun = ran().last('end', t - 1).state, ran().last('begin', t).state
    same = jax.tree.map(np.array_equal, (ended.params, ended.memory), (begun.params, begun.memory))
    assert all(jax.tree.leaves(same))
