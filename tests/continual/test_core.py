import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.core import (
  frozen_features,
  mean_of_valid,
  model,
  normalised,
  only,
  raw,
  unit,
)
from pecft_jax.inputs import TokenIds
from pecft_jax.peft import lora
from pecft_jax.problems import cross_entropy
from pecft_jax.typing import Given

from .tiny import MODEL, TOY, batch, close, frozen_of


def test_normalised_images_match_the_formula():
  x = np.random.default_rng(0).integers(0, 256, (5, 3, 5, 1)).astype(np.uint8)
  np.testing.assert_allclose(normalised(TOY.inputs, x), (x / 255 - 0.5) / 0.25, atol=1e-6)


def test_an_unknown_value_range_is_refused():
  with pytest.raises(TypeError, match='images must be uint8, got float32'):
    normalised(TOY.inputs, np.zeros((5, 3, 5, 1), np.float32))


def test_token_ids_stay_as_they_are():
  spec = TokenIds((4,), pad=-1)
  ids = np.array([[3, 0, 7, -1]], np.int32)
  assert normalised(spec, ids) is ids
  for wrong in (np.int64, np.uint8, np.float32):
    with pytest.raises(TypeError, match=f'token ids must be int32, got {wrong.__name__}'):
      normalised(spec, ids.astype(wrong))


def test_cross_entropy_matches_torch_on_the_allowed_classes():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(5, 7)).astype(np.float32)
  allowed = np.array([0, 1, 0, 1, 1, 0, 0], bool)
  labels = np.array([1, 3, 4, 4, 1], np.int32)
  kept = torch.tensor(logits[:, allowed])
  at = torch.tensor(np.searchsorted(np.flatnonzero(allowed), labels))
  want = torch.nn.functional.cross_entropy(kept, at, reduction='none')
  np.testing.assert_allclose(cross_entropy(logits, labels, allowed), want, atol=1e-6)


def test_classes_out_of_play_get_no_gradient():
  allowed = jnp.array([1, 1, 0, 1, 0, 0, 0], bool)
  labels = jnp.array([0, 1, 3])
  logits = jax.random.normal(jax.random.key(0), (3, 7))
  loss = lambda logits: cross_entropy(logits, labels, allowed).sum()
  grads = jax.grad(loss)(logits)
  assert not np.asarray(grads)[:, ~np.asarray(allowed)].any()
  changed = jnp.where(allowed, logits, 1e6)
  np.testing.assert_array_equal(loss(changed), loss(logits))


@pytest.mark.parametrize('seed', range(20))
def test_unseen_classes_never_win(seed):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(5, 7)) * 10.0 ** rng.integers(-3, 30)
  seen = rng.permutation(7) < rng.integers(1, 8)
  limited = only(seen, jnp.asarray(logits, jnp.float32))
  assert seen[np.asarray(limited.argmax(-1))].all()
  assert np.isneginf(np.asarray(limited)[:, ~seen]).all()


def test_a_mean_leaves_out_padding_whatever_it_holds():
  values, valid = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])
  assert mean_of_valid(values, valid) == 2
  assert mean_of_valid(values, jnp.zeros(3, bool)) == 0


def test_unit_vectors_leave_zero_alone():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0]], atol=1e-6)
  assert np.isfinite(jax.grad(lambda x: unit(x).sum())(x)).all()


def test_a_model_joins_backbone_and_transform():
  frozen = frozen_of(TOY)
  net = model(TOY, lora('fc$', rank=2))
  delta = net.init(jax.random.key(0), frozen)
  delta = jax.tree.map(lambda a: a + 0.3, delta)
  x = batch(TOY.inputs.shape, (0, 1), 0).x
  a, b = delta['block_0/fc']
  weights = frozen['block_0']['fc']
  flat = normalised(TOY.inputs, x).reshape(5, -1)
  want = jnp.tanh(flat @ (weights['kernel'] + 2 * a @ b) + weights['bias'])
  close(net.features(frozen, delta, x), want, atol=1e-5)


def test_a_pattern_without_sites_is_refused_before_any_work():
  with pytest.raises(ValueError, match="no 'linear' site matches 'nowhere'"):
    model(MODEL, lora('nowhere'))


def test_a_cached_query_is_read_instead_of_computed():
  frozen = frozen_of(TOY)
  x = batch(TOY.inputs.shape, (0, 1), 0).x
  query = jnp.ones((5, 6))
  assert frozen_features(TOY, frozen, Given(x, query)) is query
  assert raw(Given(x, query)) is x and raw(x) is x
