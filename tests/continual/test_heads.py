"""Methods with every kind of head."""

import jax
import numpy as np
import pytest
from kinds import kinds_in_method, one_of_each

from pecft_jax.about import tinies
from pecft_jax.backbones import architecture
from pecft_jax.continual import METHODS, aligned, finetune, single_task
from pecft_jax.heads import HEADS, cosine, kac
from pecft_jax.peft import adaptformer, linear_probe, lora
from pecft_jax.settings import defaults_of
from pecft_jax.train.phases import Run, begin
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step
from pecft_jax.typing import Env

from .tiny import CAPACITY, CLASSES, RECIPE, TOY, batch, env, frozen_of, run, shaken, task

FC = lora('fc$', rank=2)
TAKES = [name for name, factory in METHODS.items() if 'head' in defaults_of(factory)]
A_HEAD_PER_TASK = {'acl', 'progressive_prompts', 'sprompts'}  # They have no head on one feature.
KINDS = [name for name in tinies(HEADS) if name != 'linear']
# Wide enough for the ranks that methods have by default; only its shapes are used.
MODEL = architecture('vit_glyphs16', depth=2)
FROZEN = jax.eval_shape(MODEL.init, jax.random.key(0))


def test_methods_that_train_a_head_take_one():
  assert set(METHODS) - set(TAKES) == {'simplecil', 'slda', 'language_model'}


def kind_of(name: str) -> tuple[str, ...]:
  """What methods see of a head: the hooks that it has."""
  made = tinies(HEADS)[name]()
  return tuple(hook for hook, own in made._asdict().items() if own is not None)


def _kind_of_method(name: str) -> tuple[frozenset[str], bool]:
  return kinds_in_method(name), name in A_HEAD_PER_TASK


def stepping() -> list[tuple[str, str]]:
  """Fine-tuning with every head; one of each other kind with one of each kind, by turns."""
  kinds: dict[tuple[str, ...], list[str]] = {}
  for head in KINDS:
    kinds.setdefault(kind_of(head), []).append(head)
  pairs = [(head, 'finetune') for head in KINDS]
  others = enumerate(one_of_each([name for name in TAKES if name != 'finetune'], _kind_of_method))
  return pairs + [(same[i % len(same)], name) for i, name in others for same in kinds.values()]


@pytest.mark.parametrize(('kind', 'name'), stepping())
def test_every_kind_of_method_takes_a_step_with_every_head(name, kind):
  options = {'peft': adaptformer(width=2), 'growing': 1} if name == 'sema' else {}
  method = METHODS[name](MODEL, CAPACITY, head=tinies(HEADS)[kind](), **options)
  assert (method.head is None) == (name in A_HEAD_PER_TASK)

  def step(frozen, some):
    state = init_state(method, RECIPE, jax.random.key(0), frozen)
    start = begin(Run(method, RECIPE), state, frozen, task(0))
    after, log = train_step(method, RECIPE, start, frozen, some)
    return (
      start,
      after,
      log,
      method.predict(after.params, after.memory, Env(frozen, task(0)), some.x),
    )

  some = batch(method.inputs.shape, CLASSES[0], 0)
  start, after, log, logits = jax.eval_shape(step, FROZEN, some)
  assert jax.tree.structure(start) == jax.tree.structure(after)
  assert log.loss.shape == () and logits.shape == (5, 7)


def test_initial_deltas_do_not_depend_on_the_head():
  frozen = frozen_of(TOY)
  delta = lambda head: finetune(TOY, CAPACITY, peft=FC, head=head).init(jax.random.key(3), frozen)[
    0
  ]
  one, other = delta(None)['delta'], delta(cosine())['delta']
  assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def test_alignment_trains_a_cosine_head_and_its_scale():
  inner = finetune(TOY, CAPACITY, peft=FC, head=cosine(), masked=True)
  ran = run(aligned(inner, samples=8), TOY)
  stages = [s for s in ran.stages if s.name == 'align']
  assert stages
  for stage in stages:
    before, after = ran.before(stage).params['head'], stage.state.params['head']
    assert before.scale != after.scale and not np.array_equal(before.kernel, after.kernel)


def test_a_fixed_scale_stands_still_in_training_and_alignment():
  inner = finetune(TOY, CAPACITY, peft=FC, head=cosine(scale=9.0, learned=False), masked=True)
  ran = run(aligned(inner, samples=8), TOY)
  assert all(s.state.params['head'].scale.value == 9 for s in ran.stages)


@pytest.mark.parametrize('head', [None, cosine(), kac(centers=4)], ids=['linear', 'cosine', 'kac'])
def test_single_task_answers_among_its_classes_with_any_head(head):
  method = single_task(TOY, CAPACITY, peft=linear_probe(), head=head)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  some = batch(TOY.inputs.shape, CLASSES[1], 0)
  answers = np.asarray(method.predict(shaken(params, 5), memory, env(frozen, 1), some.x))
  assert np.isin(answers.argmax(-1), CLASSES[1]).all()
  assert method.adapted(params, memory, env(frozen, 1)).head is None or head is None
