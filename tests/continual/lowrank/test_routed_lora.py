"""C-LoRA with a routing matrix, against its equations in NumPy at float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import routed_lora
from pecft_jax.continual.core import normalised
from pecft_jax.continual.lowrank.routed_lora import routed
from pecft_jax.peft import adaptformer, lora
from pecft_jax.peft.lowrank.lora import LoraDelta

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, frozen_of, shaken

FC = lora('fc$', rank=3, alpha=6)  # A scale of 2.
PATH = 'block_0/fc'


def f64(a):
  return np.asarray(a, np.float64)


def in_second_task(strength, start=0.01):
  """The method and its state in task 2, where R_old is what task 1 learned, and nothing is zero."""
  method = routed_lora(TOY, CAPACITY, peft=FC, strength=strength, start=start)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  for t in range(2):
    where = env(frozen, t)
    params, memory = method.begin_task(params, memory, where, jax.random.key(t))
    params = shaken(params, 5 + t, 0.6)
    if t == 0:
      params, memory = method.end_task(params, memory, where)
  return method, params, memory, where


@pytest.mark.parametrize('strength', [0.0, 0.7])
def test_loss_and_gradients_are_those_of_the_equations(strength):
  method, params, memory, where = in_second_task(strength)
  some = batch(TOY.inputs.shape, CLASSES[1], 3, padding=1)
  loss, grads = jax.value_and_grad(lambda p: method.loss(p, memory, where, some, None)[0])(params)

  a, b = map(f64, params['delta'][PATH])
  old, new = f64(memory['old'][PATH]), f64(params['route'][PATH])
  assert np.abs(old).min() > 0
  x = f64(normalised(TOY.inputs, jnp.asarray(some.x))).reshape(len(some.x), -1)
  weights = where.frozen['block_0']['fc']
  kernel = f64(params['head'].kernel)
  y = np.tanh(x @ (f64(weights['kernel']) + 2 * a @ (old + new) @ b) + f64(weights['bias']))
  logits = y @ kernel + f64(params['head'].bias)
  own = list(CLASSES[1])
  share = np.zeros_like(logits)
  share[:, own] = np.exp(logits[:, own]) / np.exp(logits[:, own]).sum(1, keepdims=True)
  right = np.eye(7)[some.y]
  each = -np.log((share * right).sum(1)[some.valid])
  penalty = strength * np.square(old @ new.T).sum()
  assert strength == 0 or penalty > 0.01
  np.testing.assert_allclose(loss, each.mean() + penalty, rtol=1e-5)

  # dL / d(weights of the site), of the cross-entropy.
  back = (share - right) * some.valid[:, None] / some.valid.sum()
  g = x.T @ ((back @ kernel.T) * (1 - y**2))
  of_route = 2 * a.T @ g @ b.T + 2 * strength * new @ old.T @ old
  # The factors are moved by the new path alone.
  np.testing.assert_allclose(grads['route'][PATH], of_route, rtol=2e-4, atol=1e-5)
  np.testing.assert_allclose(grads['delta'][PATH].a, 2 * g @ (new @ b).T, rtol=2e-4, atol=1e-5)
  np.testing.assert_allclose(grads['delta'][PATH].b, 2 * (a @ new).T @ g, rtol=2e-4, atol=1e-5)


def test_a_finished_task_adds_to_the_old_matrix_and_answers_as_it_did():
  method, params, memory, where = in_second_task(1.0)
  x = batch(TOY.inputs.shape, CLASSES[1], 4).x
  before = method.predict(params, memory, where, x)
  total = f64(memory['old'][PATH]) + f64(params['route'][PATH])
  params, memory = method.end_task(params, memory, where)
  np.testing.assert_allclose(memory['old'][PATH], total, rtol=1e-6)
  assert not np.asarray(params['route'][PATH]).any()
  np.testing.assert_allclose(method.predict(params, memory, where, x), before, rtol=1e-4, atol=1e-5)
  peft, delta, head = method.adapted(params, memory, where)
  assert delta[PATH].a.shape == (15, 3)  # One LoRA of the rank that was asked for.
  merged = peft.merge(delta, where.frozen)
  features = TOY.apply(merged, normalised(TOY.inputs, jnp.asarray(x))).pooled
  logits = features @ head.kernel + head.bias
  want = np.where(where.task.seen, logits, -np.inf)
  np.testing.assert_allclose(before, want, rtol=1e-4, atol=1e-5)


def test_a_task_starts_with_the_factors_of_the_last_and_a_new_matrix_of_the_asked_deviation():
  method, params, memory, where = in_second_task(0.0, start=0.3)
  draws = [
    method.begin_task(params, memory, where, jax.random.key(i))[0]['route'][PATH] for i in range(60)
  ]
  fresh, same = method.begin_task(params, memory, where, jax.random.key(0))
  assert np.std(draws) == pytest.approx(0.3, rel=0.1)
  assert fresh['delta'] is params['delta'] and same is memory


def test_a_block_diagonal_matrix_is_a_weighted_sum_of_loras():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(5, 6)), rng.normal(size=(6, 4))
  weights = np.array([0.5, -2.0, 3.0])  # Of three LoRAs of rank 2 (eqs. 4 and 5).
  route = np.diag(np.repeat(weights, 2))
  made = routed(LoraDelta(jnp.asarray(a), jnp.asarray(b)), jnp.zeros((6, 6)), jnp.asarray(route))
  want = sum(w * a[:, 2 * i : 2 * i + 2] @ b[2 * i : 2 * i + 2] for i, w in enumerate(weights))
  np.testing.assert_allclose(f64(made.a) @ f64(made.b), want, rtol=1e-4, atol=1e-5)


def test_only_lora_and_values_in_their_range_are_taken():
  with pytest.raises(ValueError, match='needs a transform whose delta is LoRA factors'):
    routed_lora(MODEL, CAPACITY, peft=adaptformer(width=3))
  with pytest.raises(ValueError, match='strength'):
    routed_lora(TOY, CAPACITY, peft=FC, strength=-1.0)
  with pytest.raises(ValueError, match='start'):
    routed_lora(TOY, CAPACITY, peft=FC, start=0.0)
