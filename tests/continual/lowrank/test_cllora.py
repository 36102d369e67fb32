"""CL-LoRA, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones import vit
from pecft_jax.backbones.core.layers import linear
from pecft_jax.backbones.core.sites import find_sites
from pecft_jax.backbones.core.taps import put_on, tap_of
from pecft_jax.continual import cllora
from pecft_jax.continual.core import normalised
from pecft_jax.inputs import Images
from pecft_jax.peft import adaptformer, lora
from pecft_jax.peft.lowrank.lora import LoraDelta
from pecft_jax.train.step import compilations
from pecft_jax.typing import Backbone, Entry, Features, Site

from ..tiny import (
  CAPACITY,
  CLASSES,
  MODEL,
  TOY,
  batch,
  close,
  env,
  frozen_of,
  run,
  shaken,
)

SCALE = 3.0
PEFT = lora('fc$', rank=2, alpha=6)
LOW, HIGH = 'block_0/fc', 'block_1/fc'


def deep(entered: bool = True) -> Backbone:
  """Two blocks x + tanh(x W + b) on 3 tokens of width 5, then 2 x + 0.1; token 0 is the feature."""

  def init(key):
    draw = lambda key: {'kernel': 0.5 * jax.random.normal(key, (5, 5)), 'bias': jnp.zeros(5)}
    keys = jax.random.split(key, 2)
    return {f'block_{i}': {'fc': draw(keys[i])} for i in range(2)}

  def apply(params, inputs, delta=None, *, peft=None, key=None, rows=None, watch=None, below=None):
    del rows
    delta, params = put_on(peft, delta, params, key)
    taps = {}
    tap = tap_of(peft, delta, watch, taps)
    x = inputs[..., 0] if below is None else below.tokens
    for i in range(0 if below is None else below.block, 2):

      def block(x, mask, i=i):
        del mask
        w = params[f'block_{i}']['fc']
        return x + jnp.tanh(tap(Site('linear', f'block_{i}/fc'), linear, x, w['kernel'], w['bias']))

      x = tap(Site('tokens', f'block_{i}', lead=1), block, x, None)
    x = 2 * x + 0.1
    return Features(x[:, 0] + x.mean(1), x, taps)

  spec = Images((3, 5, 1), (0.5,), (0.25,))
  entry = Entry(lambda params, inputs, block: apply(params, inputs).tokens) if entered else None
  return Backbone('deep', init, apply, find_sites(apply, init, spec.shape), spec, 5, 2, entry=entry)


DEEP = deep()


@functools.cache
def made(**options):
  """A method in the third task, in which nothing is at zero."""
  method, frozen = cllora(DEEP, CAPACITY, peft=PEFT, **options), frozen_of(DEEP)
  params, memory = jax.jit(method.init)(jax.random.key(0), frozen)
  begin, consolidate, end = map(jax.jit, (method.begin_task, method.consolidate, method.end_task))
  for t in range(2):
    where = env(frozen, t)
    params, memory = begin(params, memory, where, jax.random.key(t))
    params = shaken(params, 5 + t, 0.5)
    memory = consolidate(params, memory, where, batch(DEEP.inputs.shape, CLASSES[t], t))
    params, memory = end(params, memory, where)
  params, memory = begin(params, memory, env(frozen, 2), jax.random.key(9))
  return method, shaken(params, 8, 0.5), memory, env(frozen, 2)


def f64(a):
  return np.asarray(a, np.float64)


def images(x):
  return f64(normalised(DEEP.inputs, jnp.asarray(x)))[..., 0]


def after_block(x, weights, a, b, tanh):
  return x + tanh(x @ (weights['kernel'] + SCALE * a @ b) + weights['bias'])


def pooled(x):
  return (2 * x + 0.1)[:, 0] + (2 * x + 0.1).mean(1)


def unit(x, axis):
  return x / np.linalg.norm(x, axis=axis, keepdims=True)


def features(frozen, memory, shared, own, x):
  """Features [B, D] of images, in numpy."""
  weights = jax.tree.map(f64, frozen)
  down, up = f64(memory['down'][LOW]), f64(shared[LOW])
  low = after_block(images(x), weights['block_0']['fc'], down, up, np.tanh)
  a, b = (f64(leaf) for leaf in own.delta[HIGH])
  return pooled(after_block(low, weights['block_1']['fc'], f64(own.weights[HIGH]) * a, b, np.tanh))


def torch_gradients(params, memory, where, some, *, reassigned, detached):
  """The loss of the paper, and its gradients: those of the distillation are rescaled by columns."""
  torch = pytest.importorskip('torch')
  tensor = lambda a: torch.tensor(f64(a))
  leaf = lambda a: tensor(a).requires_grad_()
  own, head = params['own'], params['head']
  leaves = {
    'shared': leaf(params['shared'][LOW]), 'a': leaf(own.delta[HIGH].a),
    'b': leaf(own.delta[HIGH].b), 'weight': leaf(own.weights[HIGH]), 'kernel': leaf(head.kernel),
    'scale': leaf(head.scale),
  }  # fmt: skip
  frozen, valid = jax.tree.map(tensor, where.frozen), torch.tensor(some.valid)
  x, y = tensor(images(some.x))[valid], torch.tensor(some.y.astype(np.int64))[valid]
  down, first, classes = tensor(memory['down'][LOW]), CLASSES[2][0], list(CLASSES[2])

  def logits(tokens):
    h, w = pooled(tokens), leaves['kernel']
    cosines = (h / h.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=0, keepdim=True))
    return (leaves['scale'] * cosines)[:, classes]

  low = lambda up: after_block(x, frozen['block_0']['fc'], down, up, torch.tanh)
  a, b = leaves['weight'] * leaves['a'], leaves['b']
  high = after_block(low(leaves['shared']), frozen['block_1']['fc'], a, b, torch.tanh)
  loss = torch.nn.functional.cross_entropy(logits(high), y - first)
  # One site: the cosine of two numbers is their sign.
  past = tensor(memory['bank'].weights[HIGH])[:2]
  loss = loss + 0.3 * (torch.sign(past) * torch.sign(leaves['weight'])).abs().mean()

  old = logits(low(tensor(memory['before'][LOW])))
  old = torch.softmax((old.detach() if detached else old) / 2, 1)
  new = torch.log_softmax(logits(low(leaves['shared'])) / 2, 1)
  held = -5 * (old * new).sum(1).mean()
  names = list(leaves)
  grads = lambda value: dict(zip(names, torch.autograd.grad(
    value, [leaves[n] for n in names], allow_unused=True), strict=True))  # fmt: skip
  plain, distilled = grads(loss), grads(held)
  if reassigned:
    norms = tensor(memory['before'][LOW]).norm(dim=0)
    distilled['shared'] = distilled['shared'] * (len(norms) * norms / norms.sum())
  none = lambda each: 0 if each is None else each
  return (loss + held).item(), {n: none(plain[n]) + none(distilled[n]) for n in names}


@pytest.mark.parametrize('reassigned', [True, False])
@pytest.mark.parametrize('detached', [True, False])
def test_loss_and_gradients_are_those_of_the_equations(reassigned, detached):
  options = {'reassigned': reassigned, 'detached': detached}
  method, params, memory, where = made(orthogonality=0.3, **options)
  some = batch(DEEP.inputs.shape, CLASSES[2], 3)
  found = jax.value_and_grad(lambda p: method.loss(p, memory, where, some, None)[0])
  loss, grads = jax.jit(found)(params)
  want, leaves = torch_gradients(params, memory, where, some, **options)
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  own, head = grads['own'], grads['head']
  got = {
    'shared': grads['shared'][LOW], 'a': own.delta[HIGH].a, 'b': own.delta[HIGH].b,
    'weight': own.weights[HIGH], 'kernel': head.kernel[:, list(CLASSES[2])], 'scale': head.scale,
  }  # fmt: skip
  leaves['kernel'] = leaves['kernel'][:, list(CLASSES[2])]
  for name, leaf in leaves.items():
    np.testing.assert_allclose(got[name], leaf, atol=2e-5, rtol=1e-4, err_msg=name)


def test_cosines_are_of_vectors_over_all_sites():
  method, frozen = cllora(DEEP, CAPACITY, peft=PEFT, shared=0, orthogonality=0.7), frozen_of(DEEP)
  params, memory = jax.jit(method.init)(jax.random.key(0), frozen)
  vectors = np.array([[0.5, -1.5], [2.0, 0.25], [1.0, 0.75]])
  put = lambda t, own: own._replace(
    weights={path: jnp.float32(v) for path, v in zip((LOW, HIGH), vectors[t], strict=True)}
  )
  for t in range(2):
    params = {**params, 'own': put(t, params['own'])}
    params, memory = jax.jit(method.end_task)(params, memory, env(frozen, t))
  params = {**params, 'own': put(2, params['own'])}
  some = batch(DEEP.inputs.shape, CLASSES[2], 3).x
  got = jax.jit(method.forward)(params, memory, env(frozen, 2), some, None).aux_loss
  want = 0.7 * np.abs(unit(vectors[:2], 1) @ unit(vectors[2], 0)).mean()
  np.testing.assert_allclose(got, np.full(5, want), rtol=1e-5)


def test_the_first_task_has_neither_term():
  method, frozen = cllora(DEEP, CAPACITY, peft=PEFT), frozen_of(DEEP)
  params, memory = jax.jit(method.init)(jax.random.key(0), frozen)
  x = batch(DEEP.inputs.shape, CLASSES[0], 3).x
  out = jax.jit(method.forward)(shaken(params, 3), memory, env(frozen, 0), x, None)
  assert not np.asarray(out.aux_loss).any()


def test_a_class_gets_the_cosine_to_its_mean_in_the_features_of_its_own_task():
  method, params, memory, where = made()
  stored, frozen = [], where.frozen
  for t in range(2):
    own = jax.tree.map(lambda leaf, t=t: leaf[t], memory['bank'])
    stored.append((own, batch(DEEP.inputs.shape, CLASSES[t], t)))
  # Means are those of the shared LoRA at the end of each task.
  shared = [None, memory['before']]
  means = (
    f64(memory['prototypes'].sums) / np.maximum(f64(memory['prototypes'].counts), 1)[..., None]
  )
  own, some = stored[1]
  h = features(frozen, memory, shared[1], own, some.x)
  for c in CLASSES[1]:
    rows = (some.y == c) & some.valid
    if rows.any():
      np.testing.assert_allclose(means[1, c], h[rows].mean(0), rtol=1e-4, atol=1e-5)
  new = batch(DEEP.inputs.shape, CLASSES[2], 11)
  memory = method.consolidate(params, memory, where, new)
  sums, counts = f64(memory['prototypes'].sums), np.asarray(memory['prototypes'].counts)
  x = batch(DEEP.inputs.shape, (0, 3, 6), 4, rows=6).x
  want = np.full((6, 7), -1.0)
  for t, each in enumerate([stored[0][0], stored[1][0], params['own']]):
    h = unit(features(frozen, memory, params['shared'], each, x), 1)
    for c in np.flatnonzero(counts[t]):
      want[:, c] = np.maximum(want[:, c], h @ unit(sums[t, c], 0))
  np.testing.assert_allclose(method.predict(params, memory, where, x), want, rtol=1e-4, atol=1e-5)
  assert (want > -1).any(0).sum() >= 5


@functools.cache
def ran():
  return run(cllora(DEEP, CAPACITY, peft=PEFT), DEEP)


def test_shared_down_projections_have_orthonormal_columns_and_never_change():
  first, last = ran().start.memory['down'][LOW], ran().stages[-1].state.memory['down'][LOW]
  np.testing.assert_array_equal(first, last)
  np.testing.assert_allclose(first.T @ first, np.eye(2), atol=1e-6)


def test_the_teacher_is_the_shared_lora_of_the_end_of_the_task_before():
  ended, trained = ran().last('end', 0).state, ran().last('train', 1).state
  close(trained.memory['before'], ended.params['shared'], atol=0)
  assert not np.array_equal(trained.params['shared'][LOW], ended.params['shared'][LOW])


def test_a_task_starts_as_the_model_of_the_shared_lora_alone():
  params = ran().last('begin', 1).state.params['own']
  a, b = params.delta[HIGH]
  np.testing.assert_allclose(a.T @ a, np.eye(2), atol=1e-6)
  assert not np.asarray(b).any() and 0.5 <= params.weights[HIGH] < 1.5


def test_all_functions_are_compiled_once_where_a_backbone_is_entered():
  assert set(compilations(ran().steps, {}).values()) == {1}


@pytest.mark.parametrize('scan', [False, True])
def test_parts_of_a_vit_are_the_whole(scan):
  sizes = {'image_size': 16, 'channels': 1, 'patch': 8, 'width': 24, 'depth': 3, 'heads': 2}
  model = vit(**sizes, mean=(0.5,), std=(0.5,), scan=scan)
  frozen, peft = frozen_of(model), lora('attn/v$', rank=2, alpha=2)
  method = cllora(model, CAPACITY, peft=peft)
  params, memory = jax.jit(method.init)(jax.random.key(0), frozen)
  params, x = shaken(params, 3), jnp.asarray(batch(model.inputs.shape, (0, 1), 3).x)
  found = jax.jit(method.forward)(params, memory, env(frozen, 1), x, None).features
  own = params['own']
  whole = {path: each._replace(b=each.b * own.weights[path]) for path, each in own.delta.items()}
  first = 'block_0/attn/v'
  whole[first] = LoraDelta(memory['down'][first], params['shared'][first])
  images = normalised(model.inputs, x)
  want = jax.jit(lambda delta: model.apply(frozen, images, delta, peft=peft).pooled)(whole)
  np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize('options', [
  {'shared': -1}, {'shared': 3}, {'temperature': 0.0}, {'distillation': -1.0},
  {'orthogonality': -0.1},
])  # fmt: skip
def test_impossible_options_are_refused(options):
  with pytest.raises(ValueError):
    cllora(DEEP, CAPACITY, peft=PEFT, **options)


def test_what_cannot_be_split_is_refused():
  with pytest.raises(ValueError, match='CL-LoRA needs a transform whose delta is LoRA factors'):
    cllora(MODEL, CAPACITY, peft=adaptformer(width=3))
  with pytest.raises(ValueError, match='cannot: choose shared=0 or shared=2'):
    cllora(deep(entered=False), CAPACITY, peft=PEFT)
  assert cllora(TOY, CAPACITY, peft=PEFT).passes(4) == 4
