"""Small models, a small sequence of tasks, and a whole run of a method on them.

All axes differ: B 5, T 3 tasks, C 7, D 24 (6 in the toy), 4 patches. Most of what a method
does shows on the toy, which compiles many times faster.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.core.layers import linear
from pecft_jax.backbones.core.taps import tap_of
from pecft_jax.backbones.families.vit.model import find_sites, vit
from pecft_jax.devices.sharding import one_device
from pecft_jax.inputs import Images
from pecft_jax.paths import map_named, named_leaves
from pecft_jax.problems import Judged
from pecft_jax.recipes import adam
from pecft_jax.train.step import Steps, compile_steps
from pecft_jax.train.update import StepLog
from pecft_jax.typing import (
  Backbone,
  Batch,
  Capacity,
  ContinualMethod,
  Env,
  Features,
  Site,
  Task,
  TrainState,
)

CLASSES = ((0, 1), (2, 3, 4), (5, 6))  # Of each task.
CAPACITY = Capacity(tasks=3, classes=7)
ROWS = 5
RECIPE = adam(1e-2)

MODEL = vit(
  image_size=16,
  channels=1,
  patch=8,
  width=24,
  depth=1,
  heads=2,
  mlp_ratio=1.5,
  mean=(0.45,),
  std=(0.3,),
)


def shaken(tree: Any, seed: int, size: float = 0.2) -> Any:
  """Adds noise to every leaf, a function of its path: nothing is left at zero or one."""

  def shake(name, leaf):
    rng = np.random.default_rng([seed, *name.encode()])
    return jnp.asarray(leaf + size * rng.normal(size=leaf.shape), leaf.dtype)

  return map_named(shake, tree)


def toy() -> Backbone:
  """tanh of one linear layer, whose site is `block_0/fc`: 15 inputs, D = 6."""

  def init(key):
    kernel = 0.4 * jax.random.normal(key, (15, 6))
    return {'block_0': {'fc': {'kernel': kernel, 'bias': jnp.linspace(-0.2, 0.2, 6)}}}

  def apply(params, inputs, delta=None, *, peft=None, key=None, rows=None):
    del key, rows
    if peft is not None and peft.replace is not None:
      params = peft.replace(delta, params)
    weights = params['block_0']['fc']
    x = inputs.reshape(inputs.shape[0], -1)
    site = Site('linear', 'block_0/fc')
    y = jnp.tanh(tap_of(peft, delta)(site, linear, x, weights['kernel'], weights['bias']))
    return Features(y, y[:, None], {})

  spec = Images((3, 5, 1), (0.5,), (0.25,))
  return Backbone('toy', init, apply, find_sites(apply, init, spec.shape), spec, 6, 1)


TOY = toy()


def frozen_of(backbone: Backbone) -> Any:
  """Random weights, large enough for features to differ between images; nothing is compiled."""
  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  start = lambda name, a: np.ones(a.shape) if name.endswith('scale') else np.zeros(a.shape)
  return shaken(map_named(lambda name, a: start(name, a).astype(a.dtype), shapes), 2, 0.3)


def task(t: int, classes: tuple[tuple[int, ...], ...] = CLASSES, size: int = 7) -> Task:
  """Task t of a sequence as arrays."""
  mask = lambda sets: np.isin(np.arange(size), [c for each in sets for c in each])
  count = lambda n: np.asarray(n, np.int32)
  home = np.full(size, -1, np.int32)
  for i in reversed(range(t + 1)):
    home[list(classes[i])] = i
  return Task(
    index=count(t),
    classes=mask([classes[t]]),
    seen=mask(classes[: t + 1]),
    past=mask(classes[:t]),
    home=home,
    start=count(2 * t),
    steps=count(2),
  )


def env(frozen: Any, t: int, classes: tuple[tuple[int, ...], ...] = CLASSES) -> Env:
  """Backbone and task t."""
  return Env(frozen, jax.tree.map(jnp.asarray, task(t, classes)))


def batch(
  shape: tuple[int, ...],
  labels: tuple[int, ...],
  seed: int,
  *,
  rows: int = ROWS,
  padding: int = 1,
) -> Batch:
  """Random images of some classes, each class with a brightness of its own."""
  rng = np.random.default_rng(seed)
  y = rng.choice(labels, rows).astype(np.int32)
  x = rng.integers(0, 100, (rows, *shape)) + 20 * y.reshape(-1, *[1] * len(shape))
  valid = np.arange(rows) < rows - padding
  index = rng.permutation(40)[:rows].astype(np.int32)
  return Batch(x.astype(np.uint8), y, valid, index)


def repadded(batch: Batch, seed: int = 99) -> Batch:
  """The same batch with other things in the rows that are not valid."""
  rng = np.random.default_rng(seed)
  keep = lambda a, b: np.where(batch.valid.reshape(-1, *[1] * (a.ndim - 1)), a, b)
  return Batch(
    keep(batch.x, rng.integers(0, 255, batch.x.shape).astype(np.uint8)),
    keep(batch.y, batch.y[::-1]).astype(np.int32),
    batch.valid,
    keep(batch.index, batch.index + 7).astype(np.int32),
  )


def copy(tree: Any) -> Any:
  """A tree that may be donated."""
  return jax.tree.map(jnp.copy, tree)


def equal(a: Any, b: Any) -> None:
  """Asserts that two trees are the same bit by bit."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (name, x), y in zip(named_leaves(a), jax.tree.leaves(b), strict=True):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


def close(a: Any, b: Any, atol: float = 1e-5) -> None:
  """Asserts that two trees are nearly the same."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (name, x), y in zip(named_leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol, rtol=1e-5, err_msg=name)


class Stage(NamedTuple):
  """The state after one phase of one task."""

  task: int
  name: str  # 'begin', 'train', 'consolidate', 'end'
  state: TrainState
  batch: Batch | None
  log: StepLog | None


class Run(NamedTuple):
  """A method taken through a sequence by the compiled steps."""

  method: ContinualMethod
  steps: Steps
  frozen: Any
  start: TrainState
  stages: list[Stage]

  def last(self, name: str, t: int) -> Stage:
    """The last stage of a name in task t."""
    return [s for s in self.stages if s.task == t and s.name == name][-1]

  def before(self, stage: Stage) -> TrainState:
    """The state that a stage started from."""
    at = next(i for i, s in enumerate(self.stages) if s is stage)
    return self.stages[at - 1].state if at else self.start


def run(
  method: ContinualMethod,
  backbone: Backbone,
  classes: tuple[tuple[int, ...], ...] = CLASSES,
  recipe: Any = RECIPE,
) -> Run:
  """Two updates per task, with one padded row in each batch; every state is kept."""
  frozen = frozen_of(backbone)
  steps = compile_steps(method, recipe, one_device(), frozen)
  state = steps.init(jax.random.key(3), frozen)
  start, stages = copy(state), []
  size = method.capacity.classes

  def note(t, name, state, batch=None, log=None):
    stages.append(Stage(t, name, copy(state), batch, log))
    return state

  for t in range(len(classes)):
    some = lambda seed, t=t: batch(method.inputs.shape, classes[t], 10 * t + seed)
    state = note(t, 'begin', steps.begin(state, frozen, task(t, classes, size)))
    for i in range(2 if method.trains(t) else 0):
      state, log = steps.train(state, frozen, some(i))
      note(t, 'train', state, some(i), log)
    for i in range(2 if steps.consolidate else 0):
      state = note(t, 'consolidate', steps.consolidate(state, frozen, some(i)), some(i))
    state = note(t, 'end', steps.end(state, frozen))
    steps.predict(state, frozen, some(9), task(t, classes, size).classes, counts())
  return Run(method, steps, frozen, start, stages)


def counts() -> Judged:
  """Counts of zero."""
  return Judged(*(np.zeros((), np.int32) for _ in range(3)))
