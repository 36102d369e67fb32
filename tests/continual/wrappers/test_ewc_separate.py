"""EWC with an anchor per task, against the sum over tasks in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ewc_separate, finetune
from pecft_jax.peft import lora

from ..tiny import CAPACITY, CLASSES, TOY, batch, close, env, frozen_of, shaken

INNER = finetune(TOY, CAPACITY, peft=lora('fc$', rank=2))


def leaves(tree):
  return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope='module')
def two_tasks():
  """State after two tasks, with the Fisher information and parameters of each."""
  method, frozen = ewc_separate(INNER, strength=3.0), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  consolidate, past = jax.jit(method.consolidate), []
  for t in range(2):
    params = shaken(params, 5 + t)
    some = batch(TOY.inputs.shape, CLASSES[t], t, rows=18, padding=3)
    memory = consolidate(params, memory, env(frozen, t), some)
    fisher = [each / 15 for each in leaves(memory['squares'])]
    if t == 1:  # Entries without importance in one task or in both.
      fisher[0][0], memory['squares']['delta']['block_0/fc'] = (
        0 * fisher[0][0], memory['squares']['delta']['block_0/fc']._replace(
          a=memory['squares']['delta']['block_0/fc'].a.at[0].set(0)),
      )  # fmt: skip
    params, memory = method.end_task(params, memory, env(frozen, t))
    past.append((fisher, leaves(params)))
  return method, params, memory, frozen, past


def test_the_penalty_is_the_sum_over_all_past_tasks(two_tasks):
  method, params, memory, frozen, past = two_tasks
  some, where = batch(TOY.inputs.shape, CLASSES[2], 3), env(frozen, 2)
  here = shaken(params, 11)
  loss = lambda m, p, state: m.loss(p, state, where, some, None)[0]
  value, grads = jax.value_and_grad(lambda p: loss(method, p, memory))(here)
  plain, inner = jax.value_and_grad(lambda p: loss(INNER, p, {}))(here)
  want, slope = 0.0, [0.0] * 4
  for fisher, anchor in past:
    for i, (f, a, p) in enumerate(zip(fisher, anchor, leaves(here), strict=True)):
      want += 1.5 * (f * (p - a) ** 2).sum()
      slope[i] = slope[i] + 3.0 * f * (p - a)
  assert want > 1e-3
  np.testing.assert_allclose(value - plain, want, rtol=1e-4)
  for found, rest, each in zip(leaves(grads), leaves(inner), slope, strict=True):
    np.testing.assert_allclose(found - rest, each, rtol=1e-3, atol=1e-5)


def test_after_one_task_the_anchor_is_its_parameters(two_tasks):
  method, _, _, frozen, _ = two_tasks
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  memory = {**memory, 'squares': jax.tree.map(jnp.ones_like, params), 'count': jnp.ones(())}
  _, memory = method.end_task(params, memory, env(frozen, 0))
  close(memory['anchor'], params)
  assert memory['rest'] == 0


def test_a_negative_strength_is_refused():
  with pytest.raises(ValueError, match='strength'):
    ewc_separate(INNER, strength=-1.0)
