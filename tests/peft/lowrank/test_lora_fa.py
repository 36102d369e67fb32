"""LoRA-FA beside LoRA."""

import jax
import numpy as np
import pytest
from layers import D_OUT, W, noise, run, started

from pecft_jax.peft import LoraDelta, lora, lora_fa, split_kept


def test_equals_lora_with_the_same_factors():
  own, plain = lora_fa('fc', rank=2, alpha=3.0), lora('fc', rank=2, alpha=3.0)
  leaf = started(own)._replace(b=noise(2, D_OUT))
  same = LoraDelta(leaf.a.value, leaf.b)
  np.testing.assert_array_equal(run(own, leaf), run(plain, same))
  update = lambda peft, leaf: peft.update({'fc': leaf}, 'fc', W)
  np.testing.assert_array_equal(update(own, leaf), update(plain, same))


def test_starts_with_the_factors_of_lora_and_trains_one():
  leaf, same = started(lora_fa('fc', rank=2)), started(lora('fc', rank=2))
  np.testing.assert_array_equal(leaf.a.value, same.a)
  np.testing.assert_array_equal(leaf.b, same.b)
  assert [each.shape for each in jax.tree.leaves(split_kept(leaf)[0])] == [(2, D_OUT)]


def test_a_rank_below_one_is_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    lora_fa(rank=0)
