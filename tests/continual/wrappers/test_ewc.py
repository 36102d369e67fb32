import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ease, ewc, finetune, olora
from pecft_jax.peft import lora

from ..tiny import CAPACITY, CLASSES, TOY, batch, close, env, equal, frozen_of, repadded, shaken

FC = lora('fc$', rank=2)


def made(inner=None, **options):
  method = ewc(inner or finetune(TOY, CAPACITY, peft=FC), **options)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  return method, shaken(params, 5), memory, frozen


@pytest.fixture(scope='module')
def consolidated():
  """Two batches of task 1 gathered, with 18 rows: more than are mapped at a time."""
  method, params, memory, frozen = made()
  batches = [batch(TOY.inputs.shape, CLASSES[1], i, rows=18, padding=3) for i in range(2)]
  consolidate = jax.jit(method.consolidate)
  for some in batches:
    memory = consolidate(params, memory, env(frozen, 1), some)
  return method, params, memory, frozen, batches


def test_fisher_is_the_mean_of_squared_gradients_of_single_examples(consolidated):
  """Gradients by central differences in float64, entry by entry."""
  method, params, memory, frozen, batches = consolidated
  x, y = (np.concatenate([getattr(b, name)[b.valid] for b in batches]) for name in ('x', 'y'))
  flat = ((x / 255 - 0.5) / 0.25).reshape(30, 15)
  wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (frozen, params))
  weights, leaves = wide[0]['block_0']['fc'], jax.tree.leaves(wide[1])
  seen = sorted(CLASSES[0] + CLASSES[1])

  def log_p():
    a, b, head, bias = leaves
    logits = np.tanh(flat @ (weights['kernel'] + 2 * a @ b) + weights['bias']) @ head + bias
    exp = np.exp(logits[:, seen])
    return np.log(exp[np.arange(30), np.searchsorted(seen, y)] / exp.sum(1))

  def fisher(leaf):
    out = np.zeros(leaf.shape)
    for at in np.ndindex(leaf.shape):
      start, sides = leaf[at], []
      for side in (1e-5, -1e-5):
        leaf[at] = start + side
        sides.append(log_p())
      leaf[at] = start
      out[at] = (((sides[0] - sides[1]) / 2e-5) ** 2).mean()
    return out

  _, after = method.end_task(params, memory, env(frozen, 1))
  for found, leaf in zip(jax.tree.leaves(after['fisher']), leaves, strict=True):
    np.testing.assert_allclose(found, fisher(leaf), rtol=1e-3, atol=1e-6)


def test_padding_leaves_the_fisher_alone(consolidated):
  method, params, _, frozen, batches = consolidated
  _, _, memory, _ = made()
  consolidate = jax.jit(method.consolidate)
  some = batches[0]
  once = consolidate(params, memory, env(frozen, 1), some)
  equal(consolidate(params, memory, env(frozen, 1), repadded(some)), once)
  assert once['count'] == 15


@pytest.mark.parametrize('decay', [1.0, 0.25, 0.0])
def test_past_importance_fades_by_gamma(consolidated, decay):
  _, params, memory, frozen, _ = consolidated
  method = made(decay=decay)[0]
  old = shaken(memory['fisher'], 7)
  _, after = method.end_task(params, {**memory, 'fisher': old}, env(frozen, 1))
  want = jax.tree.map(lambda f, s: decay * f + s / memory['count'], old, memory['squares'])
  close(after['fisher'], want, atol=1e-6)
  assert after['count'] == 0
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(after['squares']))


def test_penalty_is_half_the_weighted_distance_to_the_anchor(consolidated):
  _, params, memory, frozen, _ = consolidated
  method = made(strength=3.0)[0]
  inner = finetune(TOY, CAPACITY, peft=FC)
  there, memory = method.end_task(params, memory, env(frozen, 1))
  equal(memory['anchor'], there)
  here = shaken(there, 11)
  some = batch(TOY.inputs.shape, CLASSES[2], 3)
  where = env(frozen, 2)
  loss, _ = method.loss(here, memory, where, some, jax.random.key(0))
  plain, _ = inner.loss(here, {}, where, some, jax.random.key(0))
  terms = zip(*(jax.tree.leaves(tree) for tree in (memory['fisher'], here, there)), strict=True)
  penalty = sum((np.asarray(f) * (np.asarray(p) - a) ** 2).sum() for f, p, a in terms)
  np.testing.assert_allclose(loss - plain, 1.5 * penalty, rtol=1e-4)


def test_the_first_task_is_free():
  method, params, memory, frozen = made()
  some = batch(TOY.inputs.shape, CLASSES[0], 3)
  loss, _ = method.loss(params, memory, env(frozen, 0), some, jax.random.key(0))
  plain, _ = finetune(TOY, CAPACITY, peft=FC).loss(params, {}, env(frozen, 0), some, None)
  assert loss == plain


def test_what_starts_afresh_is_not_held():
  method, params, memory, frozen = made(olora(TOY, CAPACITY, peft=FC))
  assert set(memory['anchor']) == {'head'} == set(memory['fisher'])
  memory = {**memory, 'squares': shaken(memory['squares'], 7)}
  params, memory = method.end_task(params, memory, env(frozen, 0))
  some = batch(TOY.inputs.shape, CLASSES[1], 3)
  # Its gradient on what is renewed is the inner method's alone.
  where = env(frozen, 1)
  params = shaken(params, 9)
  grad = lambda loss: jax.grad(lambda p: loss(p)[0])(params)['delta']
  inner = olora(TOY, CAPACITY, peft=FC)
  close(
    grad(lambda p: method.loss(p, memory, where, some, jax.random.key(0))),
    grad(lambda p: inner.loss(p, memory['inner'], where, some, jax.random.key(0))),
  )


def test_a_method_that_renews_everything_is_refused_at_init():
  method = ewc(ease(TOY, CAPACITY, peft=FC))
  with pytest.raises(ValueError, match='ewc has no parameters to hold in ease'):
    jax.eval_shape(method.init, jax.random.key(0), frozen_of(TOY))


def test_impossible_settings_are_refused():
  for options in ({'strength': -1}, {'decay': 1.5}):
    with pytest.raises(ValueError, match='expected strength >= 0 and 0 <= decay <= 1'):
      made(**options)


def test_held_parameters_move_less_where_they_mattered(consolidated):
  """Gradient descent from the anchor: a strong penalty keeps important entries in place."""
  _, params, memory, frozen, _ = consolidated
  some, where = batch(TOY.inputs.shape, CLASSES[2], 3), env(frozen, 2)

  def moved(strength):
    method = made(strength=strength)[0]
    there, held = method.end_task(params, memory, where)
    grad = jax.jit(jax.grad(lambda p: method.loss(p, held, where, some, jax.random.key(0))[0]))
    here = there
    for _ in range(30):
      here = jax.tree.map(lambda p, g: p - 0.05 * g, here, grad(here))
    change = jax.tree.map(
      lambda p, a, f: (f * jnp.square(p - a)).sum(), here, there, held['fisher']
    )
    return sum(jax.tree.leaves(change))

  assert moved(20.0) < 0.3 * moved(0.0)
