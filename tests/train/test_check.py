"""Methods are checked without being compiled."""

import jax
import jax.numpy as jnp
import pytest
from tinies import METHOD_NAMES, WRAPPED_NAMES
from tiny_runs import tiny_backbone, tiny_method

from pecft_jax.continual import finetune
from pecft_jax.peft import lora
from pecft_jax.train import check_method
from pecft_jax.typing import Capacity, Fit, Once

CAPACITY = Capacity(2, 4)
PLAIN = finetune(tiny_backbone(), CAPACITY, peft=lora('q$', rank=2, dropout=0.1))


@pytest.mark.parametrize('name', (*METHOD_NAMES, *WRAPPED_NAMES))
def test_every_method_and_wrapper_of_the_library_passes(name):
  check_method(tiny_method(name))


def twice(params, memory, env, key):
  noise = jax.random.normal(key, (3,)) + jax.random.uniform(key, (3,))
  return {**params, 'head': jax.tree.map(lambda leaf: leaf + noise.sum(), params['head'])}, memory


def test_a_key_that_is_used_twice_is_named():
  with pytest.raises(ValueError, match='finetune: begin_task uses a random key twice'):
    check_method(PLAIN._replace(begin_task=twice))
  with pytest.raises(ValueError, match='finetune: again uses a random key twice'):
    check_method(PLAIN._replace(phases=(Once('again', twice, after='train'),)))


def test_phases_of_ones_own_are_checked():
  from pecft_jax.recipes import sgd

  loss = lambda params, memory, env, batch, key: jnp.zeros(3)
  fit = Fit('tune', loss, 'train', sgd(0.1), ('head',), steps=lambda task: 3)
  with pytest.raises(ValueError, match=r'finetune: tune must give one number, got shape \[3\]'):
    check_method(PLAIN._replace(phases=(fit,)))
