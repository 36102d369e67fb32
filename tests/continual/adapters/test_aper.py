import jax
import numpy as np
import pytest

from pecft_jax.continual import aper
from pecft_jax.peft import adaptformer, full, linear_probe, lora, ssf, vpt_deep

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, equal, frozen_of, run, shaken

torch = pytest.importorskip('torch')

FC = lora('fc$', rank=2)


def features(frozen, delta, x):
  """The toy, and the toy with a LoRA, side by side [B, 12], in torch."""
  wide = lambda a: a if torch.is_tensor(a) else torch.tensor(np.asarray(a, np.float64))
  kernel, bias = (wide(frozen['block_0']['fc'][name]) for name in ('kernel', 'bias'))
  flat = ((wide(x) / 255 - 0.5) / 0.25).reshape(len(x), -1)
  added = 2 * wide(delta['block_0/fc'].a) @ wide(delta['block_0/fc'].b)
  return torch.cat([torch.tanh(flat @ k + bias) for k in (kernel, kernel + added)], 1)


def learnt():
  """A method after all tasks, with what it learned in the first of them; and all batches."""
  frozen, method = frozen_of(TOY), aper(TOY, CAPACITY, peft=FC)
  params, memory = method.init(jax.random.key(0), frozen)
  params, batches = shaken(params, 5, 0.5), []
  consolidate = jax.jit(method.consolidate)
  for t, labels in enumerate(CLASSES):
    for i in range(2):
      batches.append(batch(TOY.inputs.shape, labels, 10 * t + i, rows=9))
      memory = consolidate(params, memory, env(frozen, t), batches[-1])
  return method, frozen, params, memory, batches


@pytest.fixture(scope='module')
def sequence():
  return learnt()


def test_prediction_is_by_cosine_to_the_class_means_of_both_models_joined(sequence):
  method, frozen, params, memory, batches = sequence
  x, y = (np.concatenate([getattr(b, name)[b.valid] for b in batches]) for name in 'xy')
  h = features(frozen, params['delta'], x)
  means = torch.stack([h[torch.tensor(y == c)].mean(0) for c in range(7)])
  test = batch(TOY.inputs.shape, range(7), 77, rows=8).x
  query = features(frozen, params['delta'], test)
  want = torch.nn.functional.cosine_similarity(query[:, None], means[None], dim=-1)
  found = jax.jit(method.predict)(params, memory, env(frozen, 2), test)
  np.testing.assert_allclose(found, want, atol=1e-5)


def test_the_first_task_trains_delta_and_cosine_head(sequence):
  method, frozen, params, memory, _ = sequence
  some = batch(TOY.inputs.shape, CLASSES[0], 3)
  where = env(frozen, 0)
  (loss, _), slopes = jax.value_and_grad(method.loss, has_aux=True)(
    params, memory, where, some, None
  )
  wide = lambda a: torch.tensor(np.asarray(a, np.float64)).requires_grad_()
  ours = jax.tree.map(wide, params)
  h = features(frozen, ours['delta'], some.x)[:, 6:]
  kernel, scale = ours['head']
  unit = lambda a, dim: a / a.norm(dim=dim, keepdim=True)
  logits = scale * unit(h, 1) @ unit(kernel, 0)
  valid = torch.tensor(some.valid)
  right = torch.tensor(np.asarray(some.y, np.int64))[valid]
  wanted = torch.nn.functional.cross_entropy(logits[valid][:, list(CLASSES[0])], right)
  wanted.backward()
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
  for slope, leaf in zip(jax.tree.leaves(slopes), jax.tree.leaves(ours), strict=True):
    np.testing.assert_allclose(slope, leaf.grad, atol=1e-5)


def test_nothing_is_trained_after_the_first_task():
  ran = run(aper(TOY, CAPACITY, peft=FC), TOY)
  assert [s.task for s in ran.stages if s.name == 'train'] == [0, 0]
  equal(ran.stages[-1].state.params, ran.last('end', 0).state.params)


@pytest.mark.parametrize(
  ('backbone', 'peft'),
  [(TOY, full()), (MODEL, ssf(spread=0.0)), (MODEL, vpt_deep(2)), (MODEL, adaptformer(3))],
  ids=['full', 'ssf', 'vpt_deep', 'adaptformer'],
)
def test_any_transform_adapts_the_second_model(backbone, peft):
  frozen, method = frozen_of(backbone), aper(backbone, CAPACITY, peft=peft)
  params, _ = method.init(jax.random.key(0), frozen)
  x = batch(backbone.inputs.shape, CLASSES[0], 3).x
  out = method.predict.part(frozen, shaken(params['delta'], 1, 0.3), x)
  alone = backbone.apply(frozen, backbone.inputs.normalised(x), rows=1).pooled
  equal(out[:, : backbone.width], alone)
  assert np.abs(out[:, backbone.width :] - alone).max() > 1e-3


def test_a_transform_without_anything_to_train_is_refused():
  with pytest.raises(ValueError, match='needs a transform that trains something'):
    aper(TOY, CAPACITY, peft=linear_probe())
