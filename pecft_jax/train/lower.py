"""Which frozen blocks are computed once per example: those below all that a method trains.

Blocks below the lowest one in which a transform acts give an example the same tokens in every
pass, as long as it has the same view. Axis letters: B batch, T tokens, D width.
"""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.continual.core import normalised
from pecft_jax.continual.plan import has_phase, plan_of
from pecft_jax.peft.lowest import lowest_block
from pecft_jax.text import size
from pecft_jax.train.experiment import Experiment
from pecft_jax.train.schedule import training_split
from pecft_jax.train.state import no_task
from pecft_jax.typing import (
  Array,
  Backbone,
  Batch,
  Below,
  ContinualMethod,
  Env,
  Fit,
  Gather,
  Given,
  Params,
)

_SHARE = 0.25  # Of the machine's memory, by default.


class Lower(NamedTuple):
  """What is computed once per example, and kept.

  Attributes:
    block: number of the lowest block that is run in every pass; 0 where nothing is kept.
    training: whether tokens of training examples are kept, those of one task at a time.
    gathered: whether passes over a task's data besides training read them, too.
    tests: whether tokens of all test sets and probes are kept.
    example: bytes of one example.
    kept: bytes of all that is kept.
    notes: why something is not kept, in words.
  """

  block: int = 0
  training: bool = False
  gathered: bool = False
  tests: bool = False
  example: int = 0
  kept: int = 0
  notes: tuple[str, ...] = ()

  def __str__(self) -> str:
    """In words."""
    what = [name for name in ('training', 'tests') if getattr(self, name)]
    if not what:
      return '; '.join(self.notes) or 'none'
    blocks = 'block 0' if self.block == 1 else f'blocks 0 to {self.block - 1}'
    return '; '.join([f'{blocks}, {" and ".join(what)}, {size(self.kept)}', *self.notes])


def memory_share() -> int:
  """Bytes that kept tokens may take by default: a quarter of this machine's memory."""
  return int(_SHARE * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))


def lower_of(experiment: Experiment, method: ContinualMethod, limit: float | None = None) -> Lower:
  """What an experiment computes once per example.

  Args:
    experiment: data and training settings; its weights may be shapes.
    method: that is run: the experiment's own, or a reference.
    limit: most bytes that are kept; None for a quarter of this machine's memory, 0 for nothing.

  >>> import numpy as np
  >>> from pecft_jax import data
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import finetune
  >>> from pecft_jax.peft import lora
  >>> from pecft_jax.train import Training, sgd
  >>> from pecft_jax.typing import Pretrained
  >>> model = architecture('vit_glyphs16')
  >>> frozen = jax.eval_shape(model.init, jax.random.key(0))
  >>> source = data.arrays('shades', np.zeros((4, 16, 16, 1), np.uint8), labels=[0, 0, 1, 1])
  >>> scenario = data.class_incremental(source, source, tasks=2)
  >>> method = finetune(model, scenario.capacity, peft=lora('block_[45]/attn/q'))
  >>> training = Training(sgd(0.1), epochs=3, batch_size=2)
  >>> str(lower_of(Experiment(Pretrained(model, frozen), scenario, method, training), method))
  'blocks 0 to 3, training and tests, 39.2 kB'
  """
  limit = memory_share() if limit is None else limit
  backbone = experiment.backbone
  nothing = lambda why: Lower(notes=(why,))
  if not limit:
    return nothing('the bound on what is kept is 0')
  if backbone.entry is None:
    return nothing(f'{backbone.name} does not say how it is entered at a block')
  if not method.transforms:
    return nothing(f'{method.name} names no transform whose sites could be looked at')
  block = min(lowest_block(backbone, each) for each in method.transforms.values())
  if not block:
    return nothing('a transform acts in block 0 or before it')
  if block == backbone.depth:
    return nothing('no transform acts in any block')
  tokens = _tokens(experiment, block, 1)
  example = tokens.size * tokens.dtype.itemsize
  notes: list[str] = []
  left = limit

  def fits(what: str, rows: int) -> bool:
    nonlocal left
    if rows * example > left:
      notes.append(f'{what} take {size(rows * example)}, of {size(left)} that are left')
      return False
    left -= rows * example
    return True

  why = _not_in_training(experiment, method, block)
  training = not why and fits('tokens of training examples', rows_of_training(experiment, method))
  notes += [why] if why else []
  why = _not_in_tests(experiment, method, block)
  tests = not why and fits('tokens of test examples', sum(rows_of_tests(experiment)))
  notes += [why] if why else []
  kept = int(limit - left)
  if not kept:
    return Lower(notes=tuple(notes))
  sizes = experiment.training.batch_size, experiment.training.eval_batch_size
  return Lower(block, training, training and sizes[0] == sizes[1], tests, example, kept,
               tuple(notes))  # fmt: skip


def rows_of_training(experiment: Experiment, method: ContinualMethod) -> int:
  """The most examples that a task of a method trains on."""
  tasks = range(len(experiment.scenario.tasks))
  return max(len(training_split(experiment, method, t).rows) for t in tasks)


def rows_of_tests(experiment: Experiment) -> list[int]:
  """The number of examples of each test set: those of all tasks, then the probes."""
  scenario = experiment.scenario
  splits = [*(task.test for task in scenario.tasks), *(probe.split for probe in scenario.probes)]
  return [len(split.rows) for split in splits]


def below_of_batch(backbone: Backbone, block: int, frozen: Params, x: Array) -> Array:
  """The tokens [B, T, D] that a block gets for a batch of examples."""
  assert backbone.entry is not None
  return backbone.entry.below(frozen, normalised(backbone.inputs, x), block)


def _tokens(experiment: Experiment, block: int, rows: int) -> Any:
  """Shape and dtype of the tokens of some examples."""
  spec = experiment.backbone.inputs
  x = jax.ShapeDtypeStruct((rows, *spec.shape), spec.dtype)
  run = lambda frozen, x: below_of_batch(experiment.backbone, block, frozen, x)
  return jax.eval_shape(run, experiment.frozen, x)


def _not_in_training(experiment: Experiment, method: ContinualMethod, block: int) -> str:
  """Why tokens of training examples are not kept; empty where they are."""
  training, tasks = experiment.training, range(len(experiment.scenario.tasks))
  if not any(map(method.trains, tasks)) and not any(isinstance(p, Fit) for p in method.phases):
    return 'nothing is trained on the examples of a task'
  if training.augment is not None:
    return 'training examples are augmented at random'
  if method.joined is not None:
    return 'batches are joined with stored examples'
  gathered = training.batch_size == training.eval_batch_size
  if max(_visits(experiment, method, t, gathered) for t in tasks) < 2:
    return 'each training example is passed once'
  loss = lambda params, memory, env, batch, key: method.loss(params, memory, env, batch, key)[0]
  if not _reads(experiment, method, block, loss):
    return f'{method.name} passes training examples in batches of its own'
  return ''


def _not_in_tests(experiment: Experiment, method: ContinualMethod, block: int) -> str:
  """Why tokens of test examples are not kept; empty where they are."""
  training = experiment.training
  once = len(experiment.scenario.tasks) == 1 and training.evaluate == 'seen'
  if once and training.evaluate_every is None:
    return 'each test example is passed once'
  predict = lambda params, memory, env, batch, key: method.predict(params, memory, env, batch.x)
  if not _reads(experiment, method, block, predict):
    return f'{method.name} passes test examples in batches of its own'
  return ''


def _visits(experiment: Experiment, method: ContinualMethod, t: int, gathered: bool) -> int:
  """The number of passes over the training data of task t that may read what is kept."""
  found = experiment.training.epochs if method.trains(t) else 0
  for step in plan_of(method):
    if step in ('prepare', 'consolidate') or isinstance(step, Gather):
      found += gathered and has_phase(method, step, t)
    elif isinstance(step, Fit) and step.steps is None:
      found += step.epochs if has_phase(method, step, t) else 0
  return found


def _reads(experiment: Experiment, method: ContinualMethod, block: int, run: Any) -> bool:
  """Whether the program of a function `(params, memory, env, batch, key)` has use for tokens."""
  rows = lambda dtype, *shape: jax.ShapeDtypeStruct((2, *shape), dtype)
  spec, target = method.inputs, method.capacity.problem.target
  tokens: Any = _tokens(experiment, block, 2)
  example: Any = rows(spec.dtype, *spec.shape)
  x = Given(example, below=Below(tokens, block))
  if experiment.scenario.kind == 'task':
    x = x._replace(task=rows(jnp.int32))
  number: Any = rows(jnp.int32)
  y: Any = rows(target.dtype, *target.shape)
  valid: Any = rows(jnp.bool_)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params, memory = jax.eval_shape(method.init, key, experiment.frozen)
  step: Any = jax.ShapeDtypeStruct((), jnp.int32)
  env = Env(experiment.frozen, jax.eval_shape(lambda: no_task(method.capacity)), step)
  given = (params, memory, env, Batch(x, y, valid, number), key)
  program = jax.make_jaxpr(run)(*given).jaxpr
  at = next(i for i, leaf in enumerate(jax.tree.leaves(given)) if leaf is tokens)
  return any(each is program.invars[at] for step in program.eqns for each in step.invars)
