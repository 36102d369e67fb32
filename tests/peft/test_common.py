"""What holds for every registered transform."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import kind_of_peft, one_of_each
from tiny_vit import DEPTH, shaken

from pecft_jax import peft as library
from pecft_jax.about import about_of, tinies
from pecft_jax.backbones.core.stacks import stack_blocks
from pecft_jax.paths import named_leaves
from pecft_jax.peft import (
  PEFTS,
  at_layers,
  bank,
  chain,
  combine,
  merge_error,
  merged,
  take,
  unmerge,
)
from pecft_jax.peft.halves import split_kept
from pecft_jax.typing import PeftTransform

TINIES = tinies(PEFTS)
NAMES = sorted(TINIES)
MERGEABLE = [name for name in NAMES if TINIES[name]().merge is not None]

every_peft = pytest.mark.parametrize('name', NAMES)
every_kind = pytest.mark.parametrize('name', one_of_each(NAMES, kind_of_peft))
every_mergeable = pytest.mark.parametrize('name', MERGEABLE)


class Case(NamedTuple):
  peft: PeftTransform
  start: Any  # The delta at init.
  delta: Any  # The same with noise.
  features: Any  # Of the plain model under `delta`.


@pytest.fixture
def case(tiny, name):
  return _case(tiny.model, name, _Box(tiny))


class _Box:
  """Lets the arrays ride along with an argument that is cached by."""

  def __init__(self, tiny):
    self.tiny = tiny

  def __eq__(self, other):
    return isinstance(other, _Box)

  def __hash__(self):
    return 0


@functools.cache
def _case(model, name, box):
  peft = TINIES[name]()
  start = peft.init(jax.random.key(3), model.sites, box.tiny.params)
  delta = shaken(start, 4, 0.1)
  return Case(peft, start, delta, model.apply(box.tiny.params, box.tiny.images, delta, peft=peft))


@functools.cache
def _frozen(model, box):
  """Features of the model without a delta."""
  return model.apply(box.tiny.params, box.tiny.images)


def close(a, b, atol=2e-5):
  chex.assert_trees_all_equal_structs(a, b)
  for (name, x), y in zip(named_leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol, rtol=1e-4, err_msg=name)


def equal(a, b):
  chex.assert_trees_all_equal_structs(a, b)
  for (name, x), y in zip(named_leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


@every_peft
def test_starts_as_the_frozen_model_where_promised(tiny, case, name):
  frozen = _frozen(tiny.model, _Box(tiny))
  start = tiny.model.apply(tiny.params, tiny.images, case.start, peft=case.peft)
  if about_of(PEFTS[name.partition(':')[0]]).identity:
    close(start, frozen, atol=1e-6)
  else:
    assert np.abs(start.pooled - frozen.pooled).max() > 1e-3


@every_peft
def test_noise_in_the_delta_changes_the_output(tiny, case):
  frozen = _frozen(tiny.model, _Box(tiny))
  changed = np.abs(case.features.pooled - frozen.pooled).max() > 1e-3
  assert changed == bool(jax.tree.leaves(case.start))  # A linear probe trains nothing here.


@every_peft
def test_keeps_the_shape_of_the_token_stream(tiny, case):
  frozen = _frozen(tiny.model, _Box(tiny))
  assert case.features.tokens.shape == frozen.tokens.shape


@every_peft
def test_jitted_scan_equals_eager_loop(tiny, case):
  @jax.jit
  def run(delta, params, images):
    return tiny.stacked.apply(params, images, delta, peft=case.peft)

  close(run(case.delta, tiny.stacked_params, tiny.images), case.features)


@every_peft
def test_gradients_reach_every_leaf_of_the_delta(tiny, name):
  peft = TINIES[name]()
  params = {key: leaf for key, leaf in tiny.params.items() if key not in ('block_1', 'block_2')}
  delta = shaken(peft.init(jax.random.key(3), tiny.shallow.sites, params), 4, 0.1)
  target = jax.random.normal(jax.random.key(5), (7, tiny.shallow.width))

  active, kept = split_kept(delta)

  @jax.jit
  @jax.grad
  def gradients(active, params, images):
    delta = combine(active, kept)
    features = tiny.shallow.apply(params, images, delta, peft=peft)
    return jnp.mean((features.pooled - target) ** 2)

  grads = gradients(active, params, tiny.images)
  chex.assert_trees_all_equal_structs(grads, active)
  for leaf, grad in named_leaves(grads):
    assert np.isfinite(grad).all(), leaf
    # Softmax does not see what is added to all keys alike.
    of_key = leaf.endswith(('attn/k/bias', 'attn/k/shift'))
    assert (np.abs(grad).max() > 1e-6) != of_key, leaf


@pytest.mark.parametrize('name', ['dora', 'houlsby', 'prefix', 'vpt_deep'])
def test_jitted_loop_equals_eager_loop(tiny, case):
  @jax.jit
  def run(delta, params, images):
    return tiny.model.apply(params, images, delta, peft=case.peft)

  close(run(case.delta, tiny.params, tiny.images), case.features)


@every_peft
def test_init_does_not_depend_on_the_storage(tiny, case):
  key = jax.random.key(3)
  equal(case.peft.init(key, tiny.stacked.sites, tiny.stacked_params), case.start)
  equal(case.peft.init(key, tiny.split.sites, tiny.split_params), case.start)


@every_kind
def test_some_layers_alone_equal_in_both_storages(tiny, case):
  peft = at_layers(case.peft, [1, 2])
  names = [name for name, _ in named_leaves(case.start)]
  if names and not any('block_' in name for name in names):  # Outside of all blocks.
    outside = r"no 'tokens' site matches '\^encoder\$'; sites: \['bl|no leaf matches .*'block_1"
    with pytest.raises(ValueError, match=outside):
      peft.init(jax.random.key(3), tiny.model.sites, tiny.params)
    return
  start = peft.init(jax.random.key(3), tiny.model.sites, tiny.params)
  assert not any('block_0' in leaf for leaf, _ in named_leaves(start))
  equal(peft.init(jax.random.key(3), tiny.stacked.sites, tiny.stacked_params), start)
  delta = shaken(start, 4, 0.1)

  @jax.jit
  def run(delta, params, images):
    return tiny.stacked.apply(params, images, delta, peft=peft)

  features = tiny.model.apply(tiny.params, tiny.images, delta, peft=peft)
  close(run(delta, tiny.stacked_params, tiny.images), features)


@every_peft
def test_split_projections_equal_fused_ones(tiny, case):
  features = tiny.split.apply(tiny.split_params, tiny.images, case.delta, peft=case.peft)
  close(features, case.features)


@every_kind
def test_remat_equals_plain(tiny, case):
  @jax.jit
  def run(delta, params, images):
    return tiny.remat.apply(params, images, delta, peft=case.peft)

  close(run(case.delta, tiny.params, tiny.images), case.features)


@every_peft
def test_the_class_token_alone_equals_all_tokens(tiny, case):
  features = tiny.model.apply(tiny.params, tiny.images, case.delta, peft=case.peft, rows=1)
  assert features.tokens.shape[1] == 1
  close(features.pooled, case.features.pooled)


@pytest.mark.parametrize('name', ['adaptformer', 'prefix', 'vpt_deep', 'vpt_shallow'])
def test_the_class_token_alone_equals_all_tokens_of_a_scan(tiny, case):
  params = tiny.stacked_params
  features = tiny.stacked.apply(params, tiny.images, case.delta, peft=case.peft, rows=1)
  close(features.pooled, case.features.pooled)


@every_peft
def test_computes_in_the_type_of_the_backbone(tiny, case):
  def run(delta, params, images):
    return tiny.half.apply(params, images, delta, peft=case.peft)

  assert jax.eval_shape(run, case.delta, tiny.params, tiny.images).tokens.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(split_kept(case.start)[0])} <= {
    jnp.dtype('float32')
  }


@every_peft
def test_init_works_on_shapes_alone(tiny, case):
  def init(key, params):
    return case.peft.init(key, tiny.stacked.sites, params)

  abstract = jax.eval_shape(
    init, jax.eval_shape(lambda: jax.random.key(0)), jax.eval_shape(lambda: tiny.stacked_params)
  )
  chex.assert_trees_all_equal_structs(abstract, case.start)
  shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(abstract)]
  assert shapes == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(case.start)]


@every_peft
def test_no_leaf_of_the_delta_is_one_of_the_frozen_model(tiny, case):
  pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tiny.params)}
  assert not pointers & {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(case.start)}


@every_peft
def test_a_slice_of_a_bank_is_a_single_delta(tiny, case):
  if case.peft.calibrate is not None:
    with pytest.raises(ValueError, match='a bank has no calibration'):
      bank(case.peft, 2)
    return
  key = jax.random.key(6)
  slots = bank(case.peft, 2).init(key, tiny.model.sites, tiny.params)
  for slot, slot_key in enumerate(jax.random.split(key, 2)):
    equal(take(slots, slot), case.peft.init(slot_key, tiny.model.sites, tiny.params))
  two = jax.tree.map(lambda leaf: jnp.stack([leaf + 1, leaf]), case.delta)
  equal(take(two, jnp.array(1)), case.delta)


@every_peft
def test_is_found_in_a_chain_like_by_itself(tiny, case):
  peft = chain(first=library.nothing(), second=case.peft)
  delta = {'first': {}, 'second': case.delta}
  close(tiny.model.apply(tiny.params, tiny.images, delta, peft=peft), case.features)


@every_mergeable
def test_merged_weights_equal_the_sites(tiny, case):
  for model, params in ((tiny.model, tiny.params), (tiny.split, tiny.split_params)):
    assert merge_error(model.apply, case.peft, case.delta, params, tiny.images) < 2e-5


@every_mergeable
def test_merged_weights_are_the_same_in_both_storages(tiny, case):
  stacked = merged(case.peft, case.delta, tiny.stacked_params).params
  close(stacked, stack_blocks(merged(case.peft, case.delta, tiny.params).params, DEPTH), 1e-6)


@every_mergeable
def test_unmerging_restores_every_bit(tiny, case):
  for params in (tiny.params, tiny.stacked_params):
    together = merged(case.peft, case.delta, params)
    assert bool(together.originals) == bool(jax.tree.leaves(case.start))
    equal(unmerge(together), params)


@every_mergeable
def test_merging_is_done_in_float32_and_keeps_the_stored_type(tiny, case):
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params)
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
  together = merged(case.peft, case.delta, half)
  exact = case.peft.merge(case.delta, wide)
  equal(together.params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact))
  equal(unmerge(together), half)
