"""Twenty tasks, and not one function is compiled twice."""

import jax
import numpy as np
import pytest

from pecft_jax.continual import derpp, ease, ewc, lwf, olora
from pecft_jax.peft import lora
from pecft_jax.train.step import compilations
from pecft_jax.typing import Capacity

from .tiny import TOY, run

TASKS = 20
SEQUENCE = tuple((2 * t, 2 * t + 1) for t in range(TASKS))
CAPACITY = Capacity(TASKS, 2 * TASKS)
FC = lora('fc$', rank=2)
METHODS = {
  'ease': lambda: ease(TOY, FC, CAPACITY),
  'lwf(ewc(derpp(olora)))': lambda: lwf(ewc(derpp(olora(TOY, FC, CAPACITY), size=11))),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_twenty_tasks_compile_nothing_twice(name):
  ran = run(METHODS[name](), TOY, SEQUENCE)
  counts = compilations(ran.steps, {})
  assert set(counts) == {'train', 'begin', 'consolidate', 'end', 'predict'}
  assert set(counts.values()) == {1}
  end = ran.stages[-1].state
  assert end.task.index == TASKS - 1 and np.asarray(end.task.seen).all()
  for leaf in jax.tree.leaves((end.params, end.memory)):
    assert np.isfinite(np.asarray(leaf)).all()
