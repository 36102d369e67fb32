"""Families of low-rank updates beside the same layers in huggingface/peft."""

import pytest

torch = pytest.importorskip('torch')
hf = pytest.importorskip('peft')

from test_peft_hf import (  # noqa: E402  It needs both.
  RANK,
  assert_same_gradients,
  assert_same_outputs,
  found,
  ours,
  theirs,
)

from pecft_jax.peft import HiraDelta, MissDelta, hira, miss  # noqa: E402

LAYERS = ('fc1', 'fc2')


def test_hira():
  model = theirs(hf.HiraConfig(r=RANK, target_modules=list(LAYERS)))
  parts = {'a': 'hira_A', 'b': 'hira_B'}
  delta = {at: HiraDelta(*(found(model, at, part) for part in parts.values())) for at in LAYERS}
  apply = ours(model, hira('fc', RANK))
  assert_same_outputs(model, apply, delta)
  assert_same_gradients(model, apply, delta, parts)


def test_miss():
  model = theirs(hf.MissConfig(r=4, target_modules=list(LAYERS)))  # Divides neither width.
  parts = {'block': 'miss_block'}
  delta = {at: MissDelta(found(model, at, 'miss_block').T) for at in LAYERS}
  apply = ours(model, miss('fc', 4))
  assert_same_outputs(model, apply, delta)
  assert_same_gradients(model, apply, delta, parts, transposed=False)
