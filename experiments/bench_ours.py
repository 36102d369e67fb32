"""The library's side of `bench_peers.py`: the very functions that a run compiles."""

import time
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones import decoder, random_weights
from pecft_jax.continual import ease, finetune, l2p, ranpac
from pecft_jax.inputs import Images
from pecft_jax.peft import adaptformer, linear_probe, lora
from pecft_jax.problems import Judged
from pecft_jax.train import adam, compile_steps, one_device
from pecft_jax.typing import (
  Backbone,
  Batch,
  Capacity,
  ContinualMethod,
  Features,
  Given,
  Task,
)

CLASSES = 100
CAPACITY = Capacity(10, CLASSES)
PROJECTION, EXAMPLES, WIDTH = 10_000, 5_000, 768  # RanPAC on one of CIFAR-100's ten tasks.
Facts = dict[str, float]
Step = Callable[[], dict[str, float]]


def matmul_rate(size: int = 2048) -> float:
  """FLOP/s of a float32 matrix product [size, size], the best of three."""
  x = jnp.ones((size, size))
  return 2 * size**3 / min(_timed(lambda: _product(x, x)) for _ in range(3))


_product = jax.jit(jnp.matmul)


def _timed(call: Callable[[], Any]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def _batch(backbone: Backbone, size: int, values: int = 256) -> Batch:
  x = jax.random.randint(jax.random.key(1), (size, *backbone.inputs.shape), 0, values)
  rows = jnp.arange(size, dtype=jnp.int32)
  return Batch(x.astype(backbone.inputs.dtype), rows % 10, jnp.ones(size, bool), rows)


def _first_task() -> Task:
  first, zero = np.arange(CLASSES) < 10, np.int32(0)
  home = np.where(first, 0, -1).astype(np.int32)
  arrays: Any = (zero, first, first, np.zeros(CLASSES, bool), home, zero, np.int32(100))
  return Task(*arrays)


def _begun(method: ContinualMethod, frozen: Any) -> tuple[Any, Any, Any]:
  """Compiled steps, a state at the start of a task, and frozen weights on their device."""
  steps = compile_steps(method, adam(1e-3), one_device(), frozen)
  frozen = jax.device_put(frozen, steps.frozen_shardings)
  state = steps.begin(steps.init(jax.random.key(0), frozen), frozen, _first_task())
  return steps, state, frozen


def _trainer(method: ContinualMethod, frozen: Any, batch: Batch) -> tuple[Callable, Facts]:
  """An update of a method as a function without arguments, and what its program costs."""
  steps, state, frozen = _begun(method, frozen)
  compiled = steps.train.lower(state, frozen, batch).compile()
  costs, memory = compiled.cost_analysis(), compiled.memory_analysis()

  def update() -> Any:
    nonlocal state
    state, log = compiled(state, frozen, batch)
    return state.params, log

  return update, {'GFLOP': costs['flops'] / 1e9, 'temporaries MB': memory.temp_size_in_bytes / 1e6}


def _training(
  build: Callable[[Backbone], ContinualMethod],
  card: str = 'vit_base_patch16_224',
  size: int = 8,
) -> tuple[Step, Facts]:
  model = random_weights(card)
  update, facts = _trainer(build(model.backbone), model.params, _batch(model.backbone, size))
  return lambda: {'step': _timed(update)}, facts


def _texts(pattern: str) -> tuple[Step, Facts]:
  """An update of a LoRA on a decoder of 58 M parameters (with its output layer), as classifier."""
  backbone = decoder(
    vocabulary=32_000, width=512, depth=8, heads=8, kv_heads=8, hidden=1376, length=128
  )
  method = finetune(backbone, CAPACITY, peft=lora(pattern, rank=8))
  batch = _batch(backbone, 8, values=32_000)
  update, facts = _trainer(method, backbone.init(jax.random.key(0)), batch)
  return lambda: {'step': _timed(update)}, facts


def subspaces() -> tuple[Step, Facts]:
  """A prediction of EASE after five tasks."""
  model = random_weights('vit_tiny_patch16_224')
  method = ease(model.backbone, CAPACITY, peft=adaptformer(width=64))
  steps, state, frozen = _begun(method, model.params)
  seen = np.arange(CLASSES) < 50
  state = state._replace(task=state.task._replace(index=np.int32(4), seen=seen))
  batch, none = _batch(model.backbone, 32), Judged(*[jnp.zeros(1, jnp.int32)] * 3)
  its = np.zeros(32, np.int32), seen[None], np.ones(1, bool)  # All of one test set.
  predict = lambda: steps.predict(state, frozen, batch, *its, none)
  return lambda: {'step': _timed(predict)}, {}


def features() -> tuple[Step, Facts]:
  """The frozen backbone's pooled features."""
  model = random_weights('vit_base_patch16_224')
  images = jax.random.normal(jax.random.key(0), (8, *model.backbone.inputs.shape))
  run = jax.jit(lambda params, x: model.backbone.apply(params, x, rows=1).pooled)
  return lambda: {'step': _timed(lambda: run(model.params, images))}, {}


def _with_and_without_cache(
  build: Callable[[Backbone], ContinualMethod],
) -> tuple[Step, Facts]:
  """An update that computes its queries, and one that reads them off a cache."""
  model = random_weights('vit_base_patch16_224')
  method, batch = build(model.backbone), _batch(model.backbone, 8)
  plain, facts = _trainer(method, model.params, batch)
  query = jax.random.normal(jax.random.key(2), (8, model.backbone.width))
  cached, _ = _trainer(method, model.params, batch._replace(x=Given(batch.x, query)))
  return lambda: {'step': _timed(plain), 'cached': _timed(cached)}, facts


def _given_features() -> Backbone:
  """A backbone that does nothing: RanPAC is timed from features on, as uint8 'images'."""

  def apply(params, inputs, delta=None, *, peft=None, key=None, rows=None):
    del params, delta, peft, key, rows
    x = inputs.reshape(inputs.shape[0], -1)
    return Features(x, x[:, None], {})

  spec = Images((1, 1, WIDTH), (0.5,) * WIDTH, (0.25,) * WIDTH)
  return Backbone('features', lambda key: {'none': jnp.zeros(1)}, apply, (), spec, WIDTH, 1)


def projections() -> tuple[Step, Facts]:
  """A whole task of RanPAC: the sums over all batches, and its end."""
  backbone = _given_features()
  method = ranpac(backbone, CAPACITY, peft=linear_probe(), projection=PROJECTION)
  frozen = backbone.init(jax.random.key(0))
  steps, state, frozen = _begun(method, frozen)
  del state
  rng = np.random.default_rng(0)
  labels = rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
  centres = rng.normal(size=(CLASSES, WIDTH))
  x = 128 + 20 * centres[labels] + 30 * rng.normal(size=(EXAMPLES, WIDTH))
  x = x.clip(0, 255).astype(np.uint8).reshape(EXAMPLES, 1, 1, WIDTH)
  rows = np.arange(EXAMPLES, dtype=np.int32)
  everything = Batch(*cast('tuple[Any, ...]', (x, labels, np.ones(EXAMPLES, bool), rows)))
  size = 250
  data = [
    jax.tree.map(lambda a, i=i: a[i : i + size], everything) for i in range(0, EXAMPLES, size)
  ]

  def step() -> dict[str, float]:
    state = steps.begin(steps.init(jax.random.key(0), frozen), frozen, _first_task())
    jax.block_until_ready(state)
    start = time.perf_counter()
    for batch in data:
      state = steps.consolidate(state, frozen, batch)
    jax.block_until_ready(state)
    summed = time.perf_counter()
    state = jax.block_until_ready(steps.end(state, frozen))
    end = time.perf_counter()
    assert np.isfinite(np.asarray(state.memory['weights'])).all()
    return {'whole': end - start, 'end': end - summed}

  return step, {}


CONTESTS: dict[str, Callable[[], tuple[Step, Facts]]] = {
  'features': features,
  'probe': lambda: _with_and_without_cache(lambda b: finetune(b, CAPACITY, peft=linear_probe())),
  'lora': lambda: _training(lambda b: finetune(b, CAPACITY, peft=lora(rank=8))),
  'l2p': lambda: _with_and_without_cache(lambda b: l2p(b, CAPACITY)),
  'ease': lambda: _training(lambda b: ease(b, CAPACITY, peft=adaptformer(width=64))),
  'subspaces': subspaces,
  'llama': lambda: _texts(r'attn/(q|v)$'),
  'llama_all': lambda: _texts(r'attn/|mlp/'),
  'ranpac': projections,
  'by_hand': lambda: _training(
    lambda b: finetune(b, CAPACITY, peft=lora(rank=8)), 'vit_tiny_patch16_224', 32
  ),
}
