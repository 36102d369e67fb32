import jax
import numpy as np
import pytest

from pecft_jax.continual import er, ewc, masked_finetune, masked_probe
from pecft_jax.heads import cosine
from pecft_jax.peft import lora
from pecft_jax.recipes import sgd
from pecft_jax.schedules import constant
from pecft_jax.typing import Given

from ..tiny import CAPACITY, CLASSES, TOY, batch, close, env, frozen_of, run, shaken

FC = lora('fc$', rank=2)


def probed():
  """A masked probe after three tasks of two updates each."""
  return run(masked_probe(TOY, CAPACITY), TOY, recipe=sgd(0.5, momentum=0.0, schedule=constant))


def test_the_probe_is_softmax_regression_among_the_classes_of_each_task():
  """Against numpy in float64: every update of the whole sequence."""
  ran = probed()
  kernel, bias = np.zeros((6, 7)), np.zeros(7)
  for stage in ran.stages:
    if stage.name != 'train':
      continue
    some, own = stage.batch, list(CLASSES[stage.task])
    h = np.asarray(ran.method.query(ran.frozen, some.x), np.float64)[some.valid]
    logits = h @ kernel[:, own] + bias[own]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(h)), [own.index(y) for y in some.y[some.valid]]] -= 1
    kernel[:, own] -= 0.5 * h.T @ p / len(h)
    bias[own] -= 0.5 * p.mean(0)
    np.testing.assert_allclose(stage.state.params['head'].kernel, kernel, atol=1e-5)
    np.testing.assert_allclose(stage.state.params['head'].bias, bias, atol=1e-5)


def test_slots_of_old_classes_stay_bit_for_bit():
  ran = probed()
  for t in (0, 1):
    old = sum(CLASSES[: t + 1], ())
    at = ran.last('end', t).state.params['head']
    for later in ran.stages[ran.stages.index(ran.last('end', t)) :]:
      head = later.state.params['head']
      np.testing.assert_array_equal(head.kernel[:, list(old)], at.kernel[:, list(old)])


@pytest.mark.parametrize('head', [None, cosine()], ids=['linear', 'cosine'])
def test_the_probe_reads_cached_features(head):
  method = masked_probe(TOY, CAPACITY, head=head)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  some = batch(TOY.inputs.shape, CLASSES[0], 0)
  cached = some._replace(x=Given(np.zeros_like(some.x), method.query(frozen, some.x)))
  loss = lambda part, b: method.loss(part, memory, env(frozen, 0), b, None)[0]
  update = jax.value_and_grad(loss)
  close(update(params, cached), update(params, some), atol=1e-6)


def test_wrappers_sit_on_either_by_name():
  assert ewc(masked_finetune(TOY, CAPACITY, peft=FC)).name == 'ewc(masked_finetune)'
  assert er(masked_probe(TOY, CAPACITY), size=8).name == 'er(masked_probe)'
