import jax
import numpy as np
import pytest

from pecft_jax.continual import derpp, er, finetune
from pecft_jax.continual.memory.buffer import sample
from pecft_jax.peft import lora
from pecft_jax.typing import Given

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, shaken

FC = lora('fc$', rank=2)
INNER = finetune(TOY, CAPACITY, peft=FC, masked=True)


def made(offers=4, **options):
  """A method whose buffer has seen batches of task 0."""
  method = er(INNER, size=11, **options)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  for i in range(offers):
    some = batch(TOY.inputs.shape, CLASSES[0], i)
    _, out = method.loss(params, memory, env(frozen, 0), some, jax.random.key(i))
    where = env(frozen, 0)
    _, memory = method.observe(params, memory, where, some, out, None, jax.random.key(i))
  return method, params, memory, env(frozen, 1)


def test_adds_the_cross_entropy_of_a_replayed_batch_over_all_classes_seen():
  method, params, memory, where = made(strength=0.6)
  some, key = batch(TOY.inputs.shape, CLASSES[1], 9), jax.random.key(3)
  loss, out = method.loss(params, memory, where, some, key)
  plain, same = INNER.loss(params, {}, where, some, None)
  equal(out, same)
  # The draw is a function of the key; anything else of it is done by hand.
  old, valid = sample(memory['buffer'], 5, jax.random.split(key, 3)[1])
  assert np.asarray(valid).all()
  logits = INNER.forward(params, {}, where, old['x'], None).logits
  log_p = jax.nn.log_softmax(logits[:, : sum(map(len, CLASSES[:2]))])
  replayed = -log_p[np.arange(5), old['y']].mean()
  np.testing.assert_allclose(loss, plain + 0.6 * replayed, rtol=1e-5)


def test_keeps_images_and_labels_as_training_saw_them():
  _, _, memory, _ = made()
  kept = memory['buffer']
  assert kept.count == 16
  seen = [batch(TOY.inputs.shape, CLASSES[0], i) for i in range(4)]
  pairs = {(x.tobytes(), int(y)) for b in seen for x, y in zip(b.x[:4], b.y[:4], strict=True)}
  found = [
    (np.asarray(x).tobytes(), int(y)) for x, y in zip(kept.items['x'], kept.items['y'], strict=True)
  ]
  assert set(found) <= pairs and len(set(found)) == 11


def test_an_empty_buffer_adds_nothing():
  method, params, memory, where = made(offers=0)
  some = batch(TOY.inputs.shape, CLASSES[1], 9)
  loss, _ = method.loss(params, memory, where, some, jax.random.key(3))
  plain, _ = INNER.loss(params, {}, where, some, None)
  np.testing.assert_allclose(loss, plain, rtol=1e-6)


def test_cached_inputs_are_stored_without_their_query():
  method, params, memory, where = made(offers=0)
  some = batch(TOY.inputs.shape, CLASSES[1], 9)
  cached = some._replace(x=Given(some.x, np.zeros((5, 6), np.float32)))
  _, after = method.observe(params, memory, where, cached, None, None, jax.random.key(0))
  equal(after['buffer'].items['x'][:4], some.x[:4])


def test_a_buffer_without_room_is_refused_at_construction():
  with pytest.raises(ValueError, match='size of at least 1'):
    er(INNER, size=0)


@pytest.mark.parametrize('wrapper', [er, derpp])
def test_views_are_drawn_at_each_update_and_never_stored(wrapper):
  darker = lambda images, key: images // 2
  method, plain = (wrapper(INNER, size=11, views=views) for views in (darker, None))
  frozen = frozen_of(TOY)
  params, memory = plain.init(jax.random.key(0), frozen)
  params, where = shaken(params, 5), env(frozen, 0)
  some, key = batch(TOY.inputs.shape, CLASSES[0], 0), jax.random.key(1)
  _, out = method.loss(params, memory, where, some, key)
  _, kept = method.observe(params, memory, where, some, out, None, key)
  stored = np.asarray(kept['buffer'].items['x'][: some.valid.sum()])
  np.testing.assert_array_equal(stored, some.x[some.valid])
  # With images of half the brightness, stored and new, the same without views.
  half = lambda x: x // 2
  items = {**kept['buffer'].items, 'x': half(kept['buffer'].items['x'])}
  dark = {**kept, 'buffer': kept['buffer']._replace(items=items)}
  loss, _ = method.loss(params, kept, where, some, key)
  want, _ = plain.loss(params, dark, where, some._replace(x=half(some.x)), key)
  np.testing.assert_allclose(loss, want, rtol=1e-6)
