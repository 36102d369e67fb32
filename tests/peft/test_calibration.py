"""Calibrations over data of one's own."""

import jax
import numpy as np
import pytest

from pecft_jax.peft import calibrated, eva, lora, starting_from


def test_a_delta_that_there_is_is_not_calibrated_again(tiny):
  peft = eva('attn/q$', rank=2)
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  after = calibrated(tiny.model, peft, delta, tiny.params, [tiny.images])
  again = starting_from(after, peft)
  assert again.calibrate is None
  found = again.init(jax.random.key(1), tiny.model.sites, tiny.params)
  np.testing.assert_array_equal(found['block_0/attn/q'].a, after['block_0/attn/q'].a)


def test_a_batch_may_hold_more_than_the_inputs(tiny):
  peft = eva('attn/q$', rank=2)
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  one = calibrated(tiny.model, peft, delta, tiny.params, [tiny.images])
  batches = [{'image': tiny.images, 'label': np.zeros(len(tiny.images), np.int32)}]
  two = calibrated(
    tiny.model, peft, delta, tiny.params, batches, inputs=lambda batch: batch['image']
  )
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_what_cannot_be_calibrated_is_refused(tiny):
  delta = eva('attn/q$', rank=2).init(jax.random.key(0), tiny.model.sites, tiny.params)
  with pytest.raises(ValueError, match='has no calibration'):
    calibrated(tiny.model, lora('attn/q$'), delta, tiny.params, [tiny.images])
  with pytest.raises(ValueError, match='at least one batch'):
    calibrated(tiny.model, eva('attn/q$', rank=2), delta, tiny.params, [])
