"""FISH against squared gradients in float64, on the tiny model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_passes import by_hand, passed
from tiny_runs import tiny_backbone, tiny_frozen

from pecft_jax.peft import fish
from pecft_jax.peft.selective.fish import scattered

KERNEL, BIAS = 'block_0/attn/q/kernel', 'block_0/attn/q/bias'
PEFT = fish('attn/q', share=0.2)


@pytest.fixture(scope='module')
def found():
  return passed(PEFT)


def test_the_statistics_are_the_squared_gradients_of_single_examples_added_up(found):
  _, fisher, _ = found
  for at, name in enumerate((KERNEL, BIAS)):
    want = sum(np.square(grads[at]).sum(0) for grads in by_hand())
    np.testing.assert_allclose(fisher[name], want, rtol=1e-4, atol=1e-7 * want.max())


def test_the_largest_entries_of_all_leaves_together_are_trained(found):
  before, _, after = found
  kernel, bias = (sum(np.square(grads[at]).sum(0) for grads in by_hand()) for at in (0, 1))
  scores = np.concatenate([bias, kernel.reshape(-1)])  # By name.
  want = np.sort(np.argsort(-scores)[: round(0.2 * 72)])
  np.testing.assert_array_equal(after.index.value, want)
  assert (np.asarray(before.index.value) != want).any()
  np.testing.assert_array_equal(after.values, np.zeros(14))


def test_values_are_added_at_their_places_and_nowhere_else(found):
  delta = found[2]._replace(values=jnp.arange(1.0, 15.0))
  new = PEFT.replace(delta, tiny_frozen())['block_0']['attn']['q']
  old = tiny_frozen()['block_0']['attn']['q']
  flat = lambda q: np.concatenate([np.float64(q['bias']), np.float64(q['kernel']).reshape(-1)])
  change = np.zeros(72)
  change[np.asarray(delta.index.value)] = np.arange(1, 15)
  np.testing.assert_allclose(flat(new) - flat(old), change, atol=1e-5)


def test_places_outside_are_left_out():
  got = scattered(jnp.ones(4), jnp.array([-4, -1, 3, 4]), jnp.zeros((2, 2), jnp.bfloat16))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.float32(got), [[0, 0], [0, 1]])


def test_what_chooses_nothing_is_refused():
  with pytest.raises(ValueError, match=r'a share in \(0, 1\]'):
    fish(share=0.0)
  with pytest.raises(ValueError, match='at least one example'):
    fish(examples=0)
  with pytest.raises(ValueError, match=r"no leaf matches 'nowhere'; leaves: .*attn/q/bias"):
    fish('nowhere').init(jax.random.key(0), tiny_backbone().sites, tiny_frozen())
