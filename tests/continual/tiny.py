"""Small models, a small sequence of tasks, and a whole run of a method on them.

All axes differ: B 5, T 3 tasks, C 7, D 24 (6 in the toy), 4 patches. Most of what a method
does shows on the toy, which compiles many times faster.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.core.layers import linear
from pecft_jax.backbones.core.taps import put_on, tap_of
from pecft_jax.backbones.families.vit.model import find_sites, vit
from pecft_jax.continual.plan import Calibrating, has_phase, plan_of
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
  Fit,
  Gather,
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

  def apply(params, inputs, delta=None, *, peft=None, key=None, rows=None, watch=None):
    del rows
    delta, params = put_on(peft, delta, params, key)
    weights = params['block_0']['fc']
    x = inputs.reshape(inputs.shape[0], -1)
    site, taps = Site('linear', 'block_0/fc'), {}
    tap = tap_of(peft, delta, watch, taps)
    y = jnp.tanh(tap(site, linear, x, weights['kernel'], weights['bias']))
    return Features(y, y[:, None], taps)

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
  chex.assert_trees_all_equal_structs(a, b)
  for (name, x), y in zip(named_leaves(a), jax.tree.leaves(b), strict=True):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


def close(a: Any, b: Any, atol: float = 1e-5) -> None:
  """Asserts that two trees are nearly the same."""
  chex.assert_trees_all_equal_structs(a, b)
  for (name, x), y in zip(named_leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol, rtol=1e-5, err_msg=name)


class Stage(NamedTuple):
  """The state after one phase of one task."""

  task: int
  name: str  # 'begin', 'prepare', 'train', 'consolidate', 'end', or a phase of the method's own.
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

  def go_through(step, t, state):
    """A phase: two batches of passes and of training, two updates of fits."""
    some = lambda i: batch(method.inputs.shape, classes[t], 10 * t + i)
    slots = None if method.joined is None else np.full(ROWS, -1, np.int32)
    match step:
      case 'begin':
        return note(t, step, steps.begin(state, frozen, task(t, classes, size)))
      case 'end':
        return note(t, step, steps.end(state, frozen))
      case 'train':
        for i in range(2):
          state, log = steps.train(state, frozen, some(i)._replace(slot=slots))
          note(t, 'train', state, some(i)._replace(slot=slots), log)
        return state
      case Fit():
        for i in range(2):
          given = (some(i),) if step.steps is None else ()
          state, _ = steps.own[step.name](state, frozen, *given, np.int32(i), np.int32(2))
          note(t, step.name, state)
        return state
      case str() | Gather() | Calibrating():
        name = step if isinstance(step, str) else step.name
        run = getattr(steps, name) if isinstance(step, str) else steps.own[name]
        for i in range(2):
          state = note(t, name, run(state, frozen, some(i)), some(i))
        return state
    return note(t, step.name, steps.own[step.name](state, frozen))

  for t in range(len(classes)):
    for step in plan_of(method):
      if has_phase(method, step, t):
        state = go_through(step, t, state)
    some = batch(method.inputs.shape, classes[t], 10 * t + 9)
    places, own = np.zeros(len(some.valid), np.int32), task(t, classes, size).classes[None]
    steps.predict(state, frozen, some, places, own, np.ones(1, bool), counts())
  return Run(method, steps, frozen, start, stages)


def counts() -> Judged:
  """Counts of zero, of one test set."""
  return Judged(*(np.zeros(1, np.int32) for _ in range(3)))
