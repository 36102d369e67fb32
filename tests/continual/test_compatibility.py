"""Every transform with every method: it runs, or the reason why not is said at construction."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from kinds import kind_of_peft, kinds_in_method, one_of_each
from tinies import OF_CLASSES, needs_of, tiny

from pecft_jax.about import about_of, tinies
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.continual import METHODS, WRAPPERS, ease, finetune, joint, olora, ranpac
from pecft_jax.paths import named_leaves
from pecft_jax.peft import PEFTS, BottleneckDelta, LoraDelta
from pecft_jax.problems import next_tokens, regression
from pecft_jax.train.phases import Run, begin
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step
from pecft_jax.typing import Env

from .tiny import CAPACITY, CLASSES, MODEL, RECIPE, batch, task

FROZEN = jax.eval_shape(MODEL.init, jax.random.key(0))
TINIES = tinies(PEFTS)
# Methods for classes that take a transform; all wrappers at once around the plain one.
TAKES = [
  'finetune',
  *(
    name
    for name, factory in OF_CLASSES.items()
    if 'peft' in inspect.signature(factory).parameters and name != 'finetune'
  ),
]
ALL_WRAPPERS = 'all wrappers'


def made_of(kind: type) -> Callable[[str], bool]:
  """Whether the delta of a transform is records of one kind, and at least one of them."""

  def holds(peft):
    parts = jax.tree.leaves(delta_of(peft), is_leaf=lambda part: isinstance(part, kind))
    return bool(parts) and all(isinstance(part, kind) for part in parts)

  return holds


# Needs that only some transforms meet, and what is said where one does not.
MET: Mapping[str, tuple[Callable[[str], bool], str]] = {
  'LoRA factors': (made_of(LoraDelta), 'needs a transform whose delta is LoRA'),
  'adapters': (made_of(BottleneckDelta), 'needs a transform whose delta is a bottleneck'),
  'common places': (lambda peft: TINIES[peft]().calibrate is None, 'trains the same places'),
  'trained delta': (
    lambda peft: bool(jax.tree.leaves(delta_of(peft))),
    'trains something of the backbone',
  ),
}


@functools.cache
def delta_of(peft: str) -> Any:
  """The shapes of a transform's delta."""
  make = lambda frozen: TINIES[peft]().init(jax.random.key(0), MODEL.sites, frozen)
  return jax.eval_shape(make, FROZEN)


def stepping() -> list[tuple[str, str]]:
  """Methods with the transforms that they take a step with.

  Fine-tuning does with every transform. Of the others, one of each kind does with one of each kind
  of transform, by turns: all that differs within a kind is in functions that no method looks into.
  """
  pefts, methods = _by_kind(sorted(TINIES), kind_of_peft), _by_kind(TAKES[1:], kinds_in_method)
  pairs = [('finetune', peft) for peft in sorted(TINIES)]
  for i, same in enumerate([*methods, [ALL_WRAPPERS]]):
    for j, alike in enumerate(pefts):
      both = [(name, peft) for name in same for peft in alike if not unmet_by(name, peft)]
      pairs += both[(i + j) % len(both) :][:1] if both else []
  return pairs


def _by_kind(names: Iterable[str], kind: Callable[[str], Any]) -> list[list[str]]:
  found: dict[Any, list[str]] = {}
  for name in names:
    found.setdefault(kind(name), []).append(name)
  return list(found.values())


def unmet_by(name: str, peft: str) -> str:
  """What is said where a transform lacks what a method needs; empty where it lacks nothing."""
  needs = needs_of(name) if name in METHODS else ()
  found = [text for need, (met, text) in MET.items() if need in needs and not met(peft)]
  return '|'.join(found)


def build(name: str, peft: str, backbone: Any = MODEL) -> Any:
  if name != ALL_WRAPPERS:
    return METHODS[name](backbone, CAPACITY, peft=TINIES[peft]())
  method = finetune(backbone, CAPACITY, peft=TINIES[peft]())
  for wrapper in WRAPPERS:
    method = tinies(WRAPPERS)[wrapper](method)
  return method


def one_step(method, frozen, some):
  state = init_state(method, RECIPE, jax.random.key(0), frozen)
  state = begin(Run(method, RECIPE), state, frozen, task(0))
  after, log = train_step(method, RECIPE, state, frozen, some)
  params, memory = after.params, after.memory
  logits = method.predict(params, memory, Env(frozen, task(0)), some.x)
  return state, after, log, logits


@pytest.mark.parametrize('name', [*TAKES, ALL_WRAPPERS])
def test_every_pair_is_built_or_says_why_not(name):
  for peft in sorted(TINIES):
    if unmet := unmet_by(name, peft):
      with pytest.raises(ValueError, match=unmet):
        build(name, peft)
    else:
      assert build(name, peft).backbone is MODEL


@pytest.mark.parametrize(('name', 'peft'), stepping())
def test_every_kind_of_method_takes_a_step_with_every_kind_of_transform(name, peft):
  method = build(name, peft)
  some = batch(method.inputs.shape, CLASSES[0], 0)
  state, after, log, logits = jax.eval_shape(lambda f, b: one_step(method, f, b), FROZEN, some)
  shapes = lambda tree: [(path, leaf.shape, leaf.dtype) for path, leaf in named_leaves(tree)]
  assert shapes(state) == shapes(after)
  assert log.loss.shape == () and logits.shape == (5, 7)


BUILDERS = {
  **{name: make for name, make in tinies(METHODS).items() if 'texts' not in needs_of(name)},
  **{name: lambda b, c, m=make: m(plain(b, c)) for name, make in tinies(WRAPPERS).items()},
}


def plain(backbone, capacity):
  return finetune(backbone, capacity, peft=PEFTS['lora']('.', rank=2))


@pytest.mark.parametrize('name', BUILDERS)
def test_every_method_learns_numbers_or_says_that_it_means_classes(name):
  build = lambda: BUILDERS[name](MODEL, CAPACITY._replace(problem=regression(7)))
  base = name.partition(':')[0]
  if 'classes' in about_of({**METHODS, **WRAPPERS}[base]).needs:
    with pytest.raises(ValueError, match=f'{base} needs classes'):
      build()
    return
  some = batch(MODEL.inputs.shape, CLASSES[0], 0)
  some = some._replace(y=np.zeros((len(some.y), 7), np.float32))
  *_, log, answers = jax.eval_shape(lambda f, b: one_step(build(), f, b), FROZEN, some)
  assert log.loss.shape == () and answers.shape == (5, 7)


@pytest.mark.parametrize('name', BUILDERS)
def test_every_method_for_one_row_of_answers_refuses_tokens_and_other_widths(name):
  for problem in (next_tokens(4), regression(3)):
    with pytest.raises(ValueError, match=f'the problem is {problem.name}'):
      BUILDERS[name](MODEL, CAPACITY._replace(problem=problem))


def test_a_pattern_without_sites_is_refused_at_construction():
  for make in (finetune, joint, ease, ranpac, olora):
    with pytest.raises(ValueError, match="no 'linear' site matches 'nowhere'; sites: "):
      make(MODEL, CAPACITY, peft=PEFTS['lora']('nowhere'))


@pytest.mark.parametrize('name', one_of_each(OF_CLASSES, kinds_in_method))
def test_a_stacked_backbone_serves_as_well(name):
  stacked = vit(
    image_size=16, channels=1, patch=8, width=24, depth=3, heads=2, mean=(0.5,), std=(0.5,),
    scan=True,
  )  # fmt: skip
  frozen = jax.eval_shape(stacked.init, jax.random.key(0))
  method = tiny(name, stacked, CAPACITY)
  some = batch(method.inputs.shape, CLASSES[0], 0)
  *_, logits = jax.eval_shape(lambda f, b: one_step(method, f, b), frozen, some)
  assert logits.shape == (5, 7)
