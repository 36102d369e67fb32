"""The order of phases."""

import jax.numpy as jnp
import pytest

from pecft_jax.continual import aligned, finetune, inflora
from pecft_jax.continual.plan import DEFAULT, has_phase, phase_names, plan_of
from pecft_jax.peft import lora
from pecft_jax.recipes import sgd
from pecft_jax.typing import Calibration, Fit, Gather, Once

from .tiny import CAPACITY, TOY

FC = lora('fc$', rank=2)
PLAIN = finetune(TOY, CAPACITY, peft=FC)


def once(name, after):
  return Once(name, lambda params, memory, env, key: (params, memory), after)


def test_the_default_plan_has_five_phases():
  assert plan_of(PLAIN) == DEFAULT
  names = ('begin', 'train', 'end')
  assert tuple(s for s in DEFAULT if has_phase(PLAIN, s, 0)) == names


def test_phases_stand_behind_what_they_follow_in_the_order_of_declaration():
  gather = Gather('again', lambda params, memory, env, batch: memory, after='c')
  fit = Fit('fit', lambda *_: jnp.zeros(()), 'train', sgd(0.1), ('head',))
  own = (once('b', 'prepare'), once('c', 'b'), once('d', 'prepare'), gather, fit)
  names = phase_names(PLAIN._replace(phases=own))
  assert names == ('begin', 'prepare', 'b', 'c', 'again', 'd', 'train', 'fit', 'consolidate', 'end')


def test_a_wrappers_phases_stand_behind_those_of_the_method_inside():
  method = aligned(inflora(TOY, CAPACITY, peft=FC))
  assert phase_names(method) == (
    *('begin', 'prepare', 'design', 'train', 'consolidate', 'gaussians', 'align', 'end'),
  )


def test_a_calibrated_transform_has_a_pass_behind_begin():
  empty = Calibration(lambda *_: None, lambda d, w: (), lambda s, t, v: s, lambda d, s: d)
  method = PLAIN._replace(transforms={'delta': FC._replace(calibrate=empty)})
  assert phase_names(method)[:3] == ('begin', 'calibrate delta', 'calibrated delta')
  step = plan_of(method)[1]
  assert has_phase(method, step, 0) and not has_phase(method, step, 1)
  assert has_phase(method._replace(renewed=('delta',)), step, 1)


@pytest.mark.parametrize(
  ('own', 'message'),
  [
    ((once('a', 'begin'), once('a', 'train')), 'names of their own'),
    ((once('train', 'begin'),), 'names of their own'),
    ((once('a', 'nowhere'),), "'a': 'nowhere'"),
    ((once('a', 'b'), once('b', 'a')), 'without a circle'),
    ((once('a', 'end'),), 'expected `after`'),
  ],
)
def test_plans_that_are_none_are_refused(own, message):
  with pytest.raises(ValueError, match=message):
    plan_of(PLAIN._replace(phases=own))
