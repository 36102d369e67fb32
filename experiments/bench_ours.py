"""The library's side of the benches: the very functions that a run compiles.

Neither grain nor tyro is needed.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from contest import ADAPTER, BY_HAND, CLASSES, PATCH, Contest, Rig, Sizes, Texts

from pecft_jax.backbones import decoder, vit
from pecft_jax.continual import ease, finetune, l2p, language_model, ranpac
from pecft_jax.inputs import Images
from pecft_jax.peft import adaptformer, linear_probe, lora
from pecft_jax.problems import Judged, next_tokens
from pecft_jax.train import adam, compile_steps, one_device
from pecft_jax.typing import (
  Backbone,
  Batch,
  Capacity,
  ContinualMethod,
  Features,
  Given,
  Params,
  Task,
)

PROJECTION, EXAMPLES, WIDTH = 10_000, 5_000, 768  # RanPAC on one of CIFAR-100's ten tasks.

wait = jax.block_until_ready


def device() -> str:
  """The name of the device."""
  return jax.devices()[0].device_kind


def peak_bytes() -> int | None:
  """The most memory that was in use on the device; None on a CPU."""
  return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def matmul(rig: Rig) -> Contest:
  """A product of two square matrices, which is the roofline."""
  x = jax.random.normal(jax.random.key(0), (rig.matmul, rig.matmul), rig.dtype)
  product = jax.jit(jnp.matmul)
  return Contest(lambda: product(x, x))


def capacity(rig: Rig) -> Capacity:
  """For the tasks of the longest contest."""
  return Capacity(max(10, rig.subspaces), CLASSES)


def vision(sizes: Sizes, rig: Rig) -> Backbone:
  """A ViT, computed in the dtype of the rig."""
  return vit(
    image_size=rig.image,
    patch=PATCH,
    width=sizes.width,
    depth=sizes.depth,
    heads=sizes.heads,
    mlp_ratio=sizes.hidden / sizes.width,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    dtype=rig.dtype,
  )


def random_weights(backbone: Backbone, dtype: str) -> Params:
  """Weights of some value, in a dtype: a large model is never held in float32."""

  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  key = jax.random.key(0, impl='rbg')
  names, tree = jax.tree.flatten_with_path(shapes)

  def leaf(number, path, shape):
    kind = jax.tree_util.keystr(path[-1:], simple=True)
    if kind in ('scale', 'bias'):
      return jnp.full(shape.shape, float(kind == 'scale'), dtype)
    return _drawn(jax.random.fold_in(key, number), shape.shape, dtype)

  return tree.unflatten([leaf(i, path, shape) for i, (path, shape) in enumerate(names)])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _drawn(key: Any, shape: tuple[int, ...], dtype: str) -> Any:
  return 0.02 * jax.random.normal(key, shape, dtype)


def image_batch(backbone: Backbone, size: int) -> Batch:
  """Random images of the first task."""
  x = jax.random.randint(jax.random.key(1), (size, *backbone.inputs.shape), 0, 256)
  rows = jnp.arange(size, dtype=jnp.int32)
  return Batch(x.astype(jnp.uint8), rows % 10, jnp.ones(size, bool), rows)


def first_task() -> Task:
  """Ten classes, none before them."""
  first, zero = jnp.arange(CLASSES) < 10, jnp.int32(0)
  home = jnp.where(first, 0, -1).astype(jnp.int32)
  return Task(zero, first, first, jnp.zeros(CLASSES, bool), home, zero, jnp.int32(100))


def begun(method: ContinualMethod, frozen: Params) -> tuple[Any, Any, Params]:
  """Compiled steps, a state at the start of a task, and frozen weights on their device."""
  steps = compile_steps(method, adam(1e-3), one_device(), frozen)
  frozen = jax.device_put(frozen, steps.frozen_shardings)
  task = first_task()
  if not method.capacity.problem.classes:
    one = jnp.ones(1, bool)
    task = task._replace(classes=one, seen=one, past=~one, home=jnp.zeros(1, jnp.int32))
  state = steps.begin(steps.init(jax.random.key(0), frozen), frozen, task)
  return steps, state, frozen


def training(method: ContinualMethod, frozen: Params, batch: Batch) -> Contest:
  """An update of a method."""
  steps, state, frozen = begun(method, frozen)
  start = time.perf_counter()
  compiled = steps.train.lower(state, frozen, batch).compile()
  facts = {'compile s': time.perf_counter() - start, **costs(compiled)}

  def update() -> Any:
    nonlocal state
    state, log = compiled(state, frozen, batch)
    return state.params, log

  return Contest(update, facts)


def costs(compiled: Any) -> dict[str, float]:
  """What XLA tells about a program."""
  flops, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
  return {
    'GFLOP of XLA': flops.get('flops', 0.0) / 1e9,
    'temporaries MB': memory.temp_size_in_bytes / 1e6,
  }


# What is trained on images, by contest.
METHODS: dict[str, Callable[[Backbone, Capacity], ContinualMethod]] = {
  'probe': lambda backbone, capacity: finetune(backbone, capacity, peft=linear_probe()),
  'lora': lambda backbone, capacity: finetune(backbone, capacity, peft=lora(rank=8)),
  'l2p': l2p,
  'ease': lambda backbone, capacity: ease(backbone, capacity, peft=adaptformer(width=ADAPTER)),
}


def on_images(name: str, rig: Rig, *, cached: bool = False) -> Contest:
  """An update of a method, which may read its queries or features from a cache."""
  backbone = vision(rig.vit, rig)
  batch = image_batch(backbone, rig.batch)
  if cached:
    query = jax.random.normal(jax.random.key(2), (rig.batch, backbone.width))
    batch = batch._replace(x=Given(batch.x, query))
  weights = random_weights(backbone, rig.dtype)
  return training(METHODS[name](backbone, capacity(rig)), weights, batch)


def reader(rig: Rig, texts: Texts) -> ContinualMethod:
  """A LoRA on a decoder: a classifier, or a language model with a tied head."""
  sizes = texts.sizes
  backbone = decoder(
    vocabulary=sizes.vocabulary,
    width=sizes.width,
    depth=sizes.depth,
    heads=sizes.heads,
    kv_heads=sizes.kv_heads,
    hidden=sizes.hidden,
    length=texts.length,
    rope_theta=500_000.0,
    scan=rig.scan,
    remat=jax.checkpoint_policies.nothing_saveable if rig.remat else None,
    dtype=rig.dtype,
  )
  pattern = r'attn/|mlp/' if texts.everywhere else r'attn/(q|v)$'
  low_rank = lora(pattern, texts.rank, texts.alpha, dropout=texts.dropout)
  if texts.next_tokens:
    return language_model(backbone, Capacity(10, 1, next_tokens(texts.length)), peft=low_rank)
  return finetune(backbone, capacity(rig), peft=low_rank)


def text(rig: Rig, texts: Texts) -> Contest:
  """An update of it."""
  method, shape, sizes = reader(rig, texts), (texts.batch, texts.length), texts.sizes
  x = jax.random.randint(jax.random.key(1), shape, 0, sizes.vocabulary, jnp.int32)
  rows = jnp.arange(texts.batch, dtype=jnp.int32)
  batch = Batch(x, rows % 10, jnp.ones(texts.batch, bool), rows)
  if texts.next_tokens:
    batch = batch._replace(y=jnp.roll(x, -1, 1))
  return training(method, random_weights(method.backbone, rig.dtype), batch)


def subspaces(rig: Rig) -> Contest:
  """A prediction of EASE after some tasks."""
  backbone = vision(rig.subspaces_vit, rig)
  method = METHODS['ease'](backbone, capacity(rig))
  steps, state, frozen = begun(method, random_weights(backbone, rig.dtype))
  seen = jnp.ones(CLASSES, bool)
  state = state._replace(task=state.task._replace(index=jnp.int32(rig.subspaces - 1), seen=seen))
  batch, none = image_batch(backbone, rig.subspaces_batch), Judged(*[jnp.zeros(1, jnp.int32)] * 3)
  places = jnp.zeros(rig.subspaces_batch, jnp.int32)  # All of one test set.
  given = state, frozen, batch, places, seen[None], jnp.ones(1, bool), none
  start = time.perf_counter()
  compiled = steps.predict.lower(*given).compile()
  facts = {'compile s': time.perf_counter() - start, **costs(compiled)}
  return Contest(lambda: compiled(*given), facts)


def features(rig: Rig) -> Contest:
  """The frozen backbone's pooled features."""
  backbone = vision(rig.vit, rig)
  weights = random_weights(backbone, rig.dtype)
  shape = (rig.batch, *backbone.inputs.shape)
  images = jax.random.normal(jax.random.key(0), shape, rig.dtype)
  run = jax.jit(lambda weights, x: backbone.apply(weights, x, rows=1).pooled)
  start = time.perf_counter()
  compiled = run.lower(weights, images).compile()
  facts = {'compile s': time.perf_counter() - start, **costs(compiled)}
  return Contest(lambda: compiled(weights, images), facts)


def feed(rig: Rig) -> Contest:
  """A batch of decoded images from the host's memory onto the device."""
  from pecft_jax.train.batches import on_devices

  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2 * rig.batch, rig.image, rig.image, 3), np.uint8)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def call() -> Batch:
    rows = rng.integers(0, len(images), rig.batch).astype(np.int32)
    labels, valid = rows % 10, np.ones(rig.batch, bool)
    arrays: Any = images[rows], labels, valid, rows
    return on_devices(Batch(*arrays), sharding)

  return Contest(call)


def _given_features() -> Backbone:
  """A backbone that does nothing: RanPAC is timed from features on, as uint8 'images'."""

  def apply(params, inputs, delta=None, *, peft=None, key=None, rows=None):
    del params, delta, peft, key, rows
    x = inputs.reshape(inputs.shape[0], -1)
    return Features(x, x[:, None], {})

  spec = Images((1, 1, WIDTH), (0.5,) * WIDTH, (0.25,) * WIDTH)
  return Backbone('features', lambda key: {'none': jnp.zeros(1)}, apply, (), spec, WIDTH, 1)


def ranpac_end(rig: Rig) -> Contest:
  """The end of a task of RanPAC, after the sums over all of its batches."""
  backbone = _given_features()
  method = ranpac(backbone, capacity(rig), peft=linear_probe(), projection=PROJECTION)
  frozen = backbone.init(jax.random.key(0))
  steps, state, frozen = begun(method, frozen)
  rng = np.random.default_rng(0)
  labels = rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
  centres = rng.normal(size=(CLASSES, WIDTH))
  x = 128 + 20 * centres[labels] + 30 * rng.normal(size=(EXAMPLES, WIDTH))
  x = x.clip(0, 255).astype(np.uint8).reshape(EXAMPLES, 1, 1, WIDTH)
  arrays: Any = x, labels, np.ones(EXAMPLES, bool), np.arange(EXAMPLES, dtype=np.int32)
  everything = Batch(*arrays)
  size = 250
  data = [
    jax.tree.map(lambda a, i=i: a[i : i + size], everything) for i in range(0, EXAMPLES, size)
  ]

  def ready() -> Any:
    nonlocal state
    state = steps.begin(steps.init(jax.random.key(0), frozen), frozen, first_task())
    for batch in data:
      state = steps.consolidate(state, frozen, batch)
    return state

  def end() -> Any:
    nonlocal state
    state = steps.end(state, frozen)
    return state

  return Contest(end, ready=ready)


def ranpac_task(rig: Rig) -> Contest:
  """A whole task of RanPAC."""
  end, _, ready = ranpac_end(rig)
  assert ready is not None

  def whole() -> Any:
    ready()
    return end()

  return Contest(whole)


def by_hand(rig: Rig) -> Contest:
  """What `bench_by_hand.py` does without the library."""
  vit, batch = BY_HAND
  return on_images('lora', rig._replace(vit=vit, batch=batch))


CONTESTS: dict[str, Callable[[Rig], Contest]] = {
  'matmul': matmul,
  'features': features,
  'probe': functools.partial(on_images, 'probe'),
  'probe_cached': functools.partial(on_images, 'probe', cached=True),
  'lora': functools.partial(on_images, 'lora'),
  'l2p': functools.partial(on_images, 'l2p'),
  'l2p_cached': functools.partial(on_images, 'l2p', cached=True),
  'ease': functools.partial(on_images, 'ease'),
  'subspaces': subspaces,
  'feed': feed,
  'ranpac': ranpac_task,
  'ranpac_end': ranpac_end,
  'by_hand': by_hand,
}


def build(name: str, rig: Rig) -> Contest:
  """The contestant of a contest."""
  if rig.attention == 'xla':
    _attend_by_xla()
  return text(rig, rig.texts[name]) if name in rig.texts else CONTESTS[name](rig)


def _attend_by_xla() -> None:
  """Attention as two products and a softmax, whatever this process would choose."""
  from pecft_jax.backbones.families.decoder import model as decoders
  from pecft_jax.backbones.families.vit import model as vits

  def attend(q: Any, k: Any, v: Any, mask: Any) -> Any:
    seen = mask.array(q.shape[1], k.shape[1]) if hasattr(mask, 'array') else mask
    if seen is not None:
      seen = seen[None, None] if seen.ndim == 2 else seen[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=seen, implementation='xla')

  for family in (vits, decoders):
    vars(family)['attend'] = attend
