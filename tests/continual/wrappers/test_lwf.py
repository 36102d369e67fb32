import jax
import numpy as np
import pytest

from pecft_jax.continual import finetune, lwf
from pecft_jax.peft import lora
from pecft_jax.problems import divergence

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, repadded, run, shaken

FC = lora('fc$', rank=2)
INNER = finetune(TOY, CAPACITY, peft=FC, masked=True)


def made(**options):
  """After task 0, with a student that has moved on."""
  method = lwf(INNER, **options)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  teacher, memory = method.end_task(shaken(params, 5), memory, env(frozen, 0))
  return method, teacher, shaken(teacher, 6), memory, env(frozen, 1)


def test_distillation_is_the_divergence_from_the_old_model_over_old_classes():
  method, teacher, params, memory, where = made(strength=0.4, temperature=2.0)
  some = batch(TOY.inputs.shape, CLASSES[1], 9)
  loss, out = method.loss(params, memory, where, some, jax.random.key(0))
  plain, _ = INNER.loss(params, {}, where, some, None)
  old = INNER.forward(teacher, {}, where, some.x, None).logits

  def soft(logits):
    exp = np.exp(np.asarray(logits, np.float64)[some.valid][:, list(CLASSES[0])] / 2)
    return exp / exp.sum(1, keepdims=True)

  p, q = soft(old), soft(out.logits)
  np.testing.assert_allclose(loss - plain, 0.4 * 4 * (p * np.log(p / q)).sum(1).mean(), rtol=1e-4)


@pytest.mark.parametrize('temperature', [1.0, 2.0, 5.0])
def test_distillation_matches_torch(temperature):
  torch = pytest.importorskip('torch')
  method, teacher, params, memory, where = made(strength=0.4, temperature=temperature)
  some = batch(TOY.inputs.shape, CLASSES[1], 9)
  loss, out = method.loss(params, memory, where, some, jax.random.key(0))
  plain, same = INNER.loss(params, {}, where, some, None)
  equal(out, same)
  old = INNER.forward(teacher, {}, where, some.x, None).logits
  known = list(CLASSES[0])
  tensor = lambda a: torch.tensor(np.asarray(a))[some.valid][:, known] / temperature
  want = torch.nn.functional.kl_div(
    torch.log_softmax(tensor(out.logits), 1),
    torch.log_softmax(tensor(old), 1),
    reduction='batchmean',
    log_target=True,
  )
  np.testing.assert_allclose(loss - plain, 0.4 * temperature**2 * want, rtol=1e-4)


def test_teacher_is_the_model_at_the_end_of_the_last_task():
  _, teacher, _, memory, _ = made()
  equal(memory['teacher'], teacher)


def test_teacher_gets_no_gradient_and_an_equal_student_none_from_it():
  method, teacher, _, memory, where = made(strength=50.0)
  some = batch(TOY.inputs.shape, CLASSES[1], 9)
  grad = lambda loss: jax.grad(lambda p: loss(p)[0])(teacher)
  with_it = grad(lambda p: method.loss(p, memory, where, some, None))
  without = grad(lambda p: INNER.loss(p, {}, where, some, None))
  for a, b in zip(jax.tree.leaves(with_it), jax.tree.leaves(without), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_first_task_has_no_teacher():
  method = lwf(INNER)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  some = batch(TOY.inputs.shape, CLASSES[0], 9)
  loss, _ = method.loss(params, memory, env(frozen, 0), some, jax.random.key(0))
  plain, _ = INNER.loss(params, {}, env(frozen, 0), some, None)
  assert loss == plain


def test_padding_is_not_distilled():
  method, _, params, memory, where = made()
  some = batch(TOY.inputs.shape, CLASSES[1], 9)
  loss = lambda some: method.loss(params, memory, where, some, None)[0]
  assert loss(some) == loss(repadded(some))


def test_divergence_is_zero_for_equal_and_positive_for_other_logits():
  rng = np.random.default_rng(0)
  old, new = rng.normal(size=(2, 50, 7)).astype(np.float32)
  known = np.array([1, 1, 0, 1, 0, 0, 1], bool)
  assert (np.asarray(divergence(old, new, known, 2.0)) > 0).all()
  np.testing.assert_allclose(divergence(old, old, known, 2.0), np.zeros(50), atol=1e-6)
  moved = np.where(known, new, 1e4).astype(np.float32)
  np.testing.assert_array_equal(
    divergence(old, moved, known, 2.0), divergence(old, new, known, 2.0)
  )


def test_impossible_temperatures_are_refused():
  with pytest.raises(ValueError, match='temperature must be positive, got 0'):
    lwf(INNER, temperature=0)


def test_the_warm_up_trains_the_slots_of_new_classes_alone():
  method = lwf(INNER, warmup=2)
  ran = run(method, TOY)
  stages = [s for s in ran.stages if s.name == 'warm up']
  assert {s.task for s in stages} == {1, 2}
  for stage in stages:
    before, after = ran.before(stage).params, stage.state.params
    equal(before['delta'], after['delta'])
    moved = (np.asarray(before['head'].kernel) != np.asarray(after['head'].kernel)).any(0)
    assert set(np.flatnonzero(moved)) == set(CLASSES[stage.task])
  assert [phase.epochs for phase in method.phases] == [2] and not lwf(INNER).phases
  with pytest.raises(ValueError, match='warmup trains a head'):
    lwf(INNER._replace(head=None), warmup=1)
