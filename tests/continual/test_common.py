"""What holds for every method, and for every wrapper around one."""

import functools
import itertools

import chex
import jax
import numpy as np
import pytest
from kinds import kinds_in_method, one_of_each
from tinies import WRAPPED_NAMES, needs_of, tiny, without

from pecft_jax.about import tinies
from pecft_jax.continual import WRAPPERS, ease
from pecft_jax.continual.core import normalised
from pecft_jax.paths import named_leaves
from pecft_jax.peft import adaptformer
from pecft_jax.peft.halves import split_kept
from pecft_jax.train.state import init_state
from pecft_jax.train.step import compilations
from pecft_jax.train.update import train_step
from pecft_jax.typing import Backbone, ContinualMethod, Env, Update
from pecft_jax.workdir.checkpoint import Checkpoints
from pecft_jax.workdir.position import Position

from .tiny import (
  CAPACITY,
  CLASSES,
  MODEL,
  RECIPE,
  TOY,
  Run,
  batch,
  close,
  copy,
  env,
  equal,
  frozen_of,
  repadded,
  run,
)

NESTED = (
  *('ewc(derpp(finetune))', 'derpp(ewc(finetune))', 'lwf(er(masked_finetune))'),
  *('er(lwf(olora))', 'derpp(ease)'),
)
ON_A_VIT = 'ease on a vit'
# A method for texts is run as a whole in tests/train/test_common.py.
ALL = (*without('texts'), *WRAPPED_NAMES, *NESTED, ON_A_VIT)


@functools.cache
def method_of(name: str) -> ContinualMethod:
  """A small method; on the toy, unless it needs more."""
  if name == ON_A_VIT:
    return ease(MODEL, CAPACITY, peft=adaptformer(width=3))
  blocks = {'adapters', 'attention', 'class token'} & needs_of(name)
  return tiny(name, MODEL if blocks else TOY, CAPACITY)


def backbone_of(method: ContinualMethod) -> Backbone:
  return next(b for b in (MODEL, TOY) if b.inputs is method.inputs)


KINDS = one_of_each((*without('texts'), *WRAPPED_NAMES), kinds_in_method)
TRAINING = [name for name in KINDS if method_of(name).trains(0)]
ADAPTED = [name for name in ALL if method_of(name).adapted is not None]
GATHERING = [name for name in ALL if method_of(name).consolidate is not None]


COMPILED: dict[str, dict[str, int]] = {}  # By method, how often each function was compiled.


@functools.cache
def done(name: str) -> Run:
  method = method_of(name)
  found = run(method, backbone_of(method))
  COMPILED[name] = compilations(found.steps, {})  # Before other tests call these functions.
  return found


@pytest.fixture(scope='module', params=ALL)
def ran(request) -> Run:
  """A whole sequence; module scope keeps the tests of one method together."""
  return done(request.param)


def shapes(tree):
  return [(name, leaf.shape, leaf.dtype) for name, leaf in named_leaves(tree)]


def test_structure_shapes_and_dtypes_are_constant(ran):
  for stage in ran.stages:
    assert shapes(stage.state) == shapes(ran.start), stage[:2]


@pytest.mark.usefixtures('ran')
def test_every_function_is_compiled_once(request):
  counts = COMPILED[request.node.callspec.params['ran']]
  assert set(counts) >= {'begin', 'end', 'predict'}
  assert set(counts.values()) == {1}, counts


def test_everything_stays_finite(ran):
  for stage in ran.stages:
    for name, leaf in named_leaves((stage.state.params, stage.state.memory)):
      assert np.isfinite(np.asarray(leaf, np.float64)).all(), (stage[:2], name)


def test_no_leaf_is_in_both_params_and_memory(ran):
  params, memory = ran.method.init(jax.random.key(0), ran.frozen)
  addresses = lambda tree: {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}
  assert not addresses(params) & addresses(memory)
  assert not addresses(params) & addresses(ran.frozen)


def test_an_update_changes_params_and_observed_memory_alone(ran):
  frozen = frozen_of(backbone_of(ran.method))
  equal(frozen, ran.frozen)
  for stage in ran.stages:
    if stage.name != 'train':
      continue
    before, after = ran.before(stage), stage.state
    assert int(after.step) == int(before.step) + 1
    equal((after.task, after.key), (before.task, before.key))
    changed = [
      name
      for (name, old), new in zip(
        named_leaves(before.memory), jax.tree.leaves(after.memory), strict=True
      )
      if not np.array_equal(old, new)
    ]
    # All other memory is for the hooks between.
    assert not changed or ran.method.observe is not None, changed
    assert not any('bank/' in name for name in changed), changed
    same = jax.tree.map(np.array_equal, before.params, after.params)
    assert not all(jax.tree.leaves(same))


def test_tasks_begin_and_end_with_a_fresh_optimizer(ran):
  for stage in ran.stages:
    if stage.name in ('begin', 'end'):
      equal(stage.state.opt_state, RECIPE.tx.init(split_kept(stage.state.params)[0]))


def test_gathering_leaves_params_alone(ran):
  for stage in ran.stages:
    if stage.name == 'consolidate':
      equal(stage.state.params, ran.before(stage).params)


def test_slots_of_past_tasks_never_change_again(ran):
  last = dict(named_leaves(ran.stages[-1].state.memory))
  for t in range(len(CLASSES)):
    for name, leaf in named_leaves(ran.last('end', t).state.memory):
      if 'bank/' in name:
        np.testing.assert_array_equal(leaf[: t + 1], last[name][: t + 1], err_msg=name)
        assert np.asarray(leaf[t]).any() or name.endswith('bias'), name
        assert not np.asarray(leaf[t + 1 :]).any(), name


def test_slots_are_found_where_there_are_some():
  memory = lambda name: jax.eval_shape(
    method_of(name).init, jax.random.key(0), frozen_of(backbone_of(method_of(name)))
  )[1]
  for name in ('ease', 'olora', 'derpp(ease)'):
    assert any('bank/' in leaf for leaf, _ in named_leaves(memory(name))), name


@pytest.mark.parametrize('ran', TRAINING, indirect=True)
def test_loss_is_the_same_without_jit(ran):
  stage = [s for s in ran.stages if s.name == 'train'][-1]
  state = ran.before(stage)
  key = jax.random.fold_in(jax.random.fold_in(state.key, state.task.index), state.step)
  where = Env(ran.frozen, state.task)
  k_loss, _ = jax.random.split(key)
  loss, out = ran.method.loss(state.params, state.memory, where, stage.batch, k_loss)
  np.testing.assert_allclose(loss, stage.log.loss, rtol=1e-5)
  assert out.logits.shape == (5, 7) and out.features.shape == (5, backbone_of(ran.method).width)
  assert out.aux_loss.shape == (5,)


def test_unseen_classes_never_win(ran):
  predict = jax.jit(ran.method.predict)
  for t in (0, 1):
    state = ran.last('end', t).state
    x = batch(ran.method.inputs.shape, (0, 3, 6), 5, rows=6).x
    logits = predict(state.params, state.memory, env(ran.frozen, t), x)
    seen = sum(CLASSES[: t + 1], ())
    assert np.isin(logits.argmax(-1), seen).all()
    assert np.isneginf(np.delete(np.asarray(logits), seen, 1)).all()
    assert np.isfinite(np.asarray(logits)[:, list(seen)]).all()


def test_methods_that_predict_with_one_delta_tell_it():
  assert {'finetune', 'joint', 'olora', 'ranpac', 'lwf(er(masked_finetune))'} <= set(ADAPTED)
  assert not {'simplecil', 'l2p', 'ease', 'derpp(ease)'} & set(ADAPTED)


@pytest.mark.parametrize('ran', ADAPTED, indirect=True)
def test_what_is_adapted_predicts_as_the_method_does(ran):
  backbone = backbone_of(ran.method)
  for t in range(len(CLASSES)):
    state, where = ran.last('end', t).state, env(ran.frozen, t)
    found = ran.method.adapted(state.params, state.memory, where)
    x = batch(ran.method.inputs.shape, (0, 3, 6), 5, rows=6).x
    images = normalised(ran.method.inputs, jax.numpy.asarray(x))
    pooled = backbone.apply(ran.frozen, images, found.delta, peft=found.peft).pooled
    if found.head is None:  # What classifies is no part of it; its features are the method's.
      close(ran.method.forward(state.params, state.memory, where, x, None).features, pooled)
      continue
    want = ran.method.predict(state.params, state.memory, where, x)
    seen = list(sum(CLASSES[: t + 1], ()))
    close((pooled @ found.head.kernel + found.head.bias)[:, seen], want[:, seen])


def test_padded_rows_have_no_influence(ran):
  for name, step in (('train', ran.steps.train), ('consolidate', ran.steps.consolidate)):
    for stage in ran.stages[-7:]:
      if stage.name == name:
        state = step(copy(ran.before(stage)), ran.frozen, repadded(stage.batch))
        equal(state[0] if name == 'train' else state, stage.state)


@pytest.mark.parametrize('ran', GATHERING, indirect=True)
def test_a_batch_of_padding_alone_changes_no_statistics(ran):
  stages = [s for s in ran.stages if s.name == 'consolidate']
  nothing = stages[-1].batch._replace(valid=np.zeros(5, bool))
  equal(ran.steps.consolidate(copy(stages[-1].state), ran.frozen, nothing), stages[-1].state)


def test_a_restored_state_goes_on_as_if_never_stored(ran, tmp_path):
  stage = [s for s in ran.stages if s.name in ('train', 'consolidate')][-1]
  before = ran.before(stage)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, before, Position(task=2))
  checkpoints.wait()
  state, position = checkpoints.load(1, jax.eval_shape(lambda: before), ran.steps.state_shardings)
  assert position.task == 2
  chex.assert_trees_all_equal_structs(state, before)
  equal(state, before)
  if stage.name == 'train':
    state, _ = ran.steps.train(state, ran.frozen, stage.batch)
  else:
    state = ran.steps.consolidate(state, ran.frozen, stage.batch)
  equal(state, stage.state)


def test_what_starts_afresh_is_declared(ran):
  """`renewed` names just those entries of params that a new task resets."""
  # A method may reset them at the end of a task already.
  before, after = ran.before(ran.last('end', 1)).params, ran.last('begin', 2).state.params
  for name in before:
    if not jax.tree.leaves(before[name]):
      continue
    same = all(jax.tree.leaves(jax.tree.map(np.array_equal, before[name], after[name])))
    assert same == (name not in ran.method.renewed), name


def trained(method: ContinualMethod, updates: int = 2):
  """Parameters after some updates in each of two tasks."""
  frozen = frozen_of(TOY)
  state = init_state(method, RECIPE, jax.random.key(4), frozen)
  step = jax.jit(lambda state, batch: train_step(method, RECIPE, state, frozen, batch)[0])
  for t in range(2):
    where = env(frozen, t)
    params, memory = state.params, state.memory
    if method.begin_task is not None:
      params, memory = method.begin_task(params, memory, where, jax.random.key(t))
    state = state._replace(
      params=params, memory=memory, task=where.task, opt_state=RECIPE.tx.init(params)
    )
    some = batch(method.inputs.shape, CLASSES[t], t)
    for _ in range(updates):
      state = step(state, some)
    if method.consolidate is not None:
      memory = jax.jit(method.consolidate)(state.params, state.memory, where, some)
      state = state._replace(memory=memory)
    if method.end_task is not None:
      params, memory = method.end_task(state.params, state.memory, where)
      state = state._replace(params=params, memory=memory)
  return state.params


@functools.cache
def plainly_trained():
  return trained(method_of('finetune'))


ZERO = [f'{name}(finetune)' for name in tinies(WRAPPERS) if name.endswith(': zero')]


@pytest.mark.parametrize('name', [*ZERO, 'ewc: zero(derpp: zero(finetune))'])
def test_a_wrapper_of_no_strength_is_the_method_inside(name):
  close(trained(method_of(name)), plainly_trained(), atol=1e-6)


def life(method, frozen, some):
  """Every hook once, in order: (params, memory) before and after."""
  where = env(frozen, 0)
  params, memory = method.init(jax.random.key(0), frozen)
  start = params, memory
  if method.begin_task is not None:
    params, memory = method.begin_task(params, memory, where, jax.random.key(1))
  if method.prepare is not None:
    memory = method.prepare(params, memory, where, some)
  loss = jax.value_and_grad(method.loss, has_aux=True)
  (_, out), grads = loss(params, memory, where, some, jax.random.key(2))
  update, params = Update(grads, params), grads
  if method.project is not None:
    params = method.project(grads, params, memory, where, some, jax.random.key(4))
  if method.observe is not None:
    key = jax.random.key(3)
    params, memory = method.observe(params, memory, where, some, out, update, key)
  if method.consolidate is not None:
    memory = method.consolidate(params, memory, where, some)
  method.predict(params, memory, where, some.x)
  if method.end_task is not None:
    params, memory = method.end_task(params, memory, where)
  return start, (params, memory)


def changed(wrapper: str) -> tuple[str, ...]:
  """The fields of a method that a wrapper changes: what others meet inside or around it."""
  one, other = method_of('finetune'), method_of(f'{wrapper}(finetune)')
  fields = zip(one._fields, one, other, strict=True)
  return tuple(name for name, a, b in fields if name not in ('name', 'settings') and a is not b)


def pairs_of_kinds() -> list[tuple[str, str]]:
  """Inner and outer wrapper: one of each kind inside one of each, not always the same of a kind."""
  kinds: dict[tuple[str, ...], list[str]] = {}
  for wrapper in WRAPPERS:
    kinds.setdefault(changed(wrapper), []).append(wrapper)
  return [
    (inner[i % len(inner)], outer[j % len(outer)])
    for j, inner in enumerate(kinds.values())
    for i, outer in enumerate(kinds.values())
  ]


# Around others than sequential fine-tuning, each inside the one after it.
PAIRS = [('finetune', *pair) for pair in pairs_of_kinds()]
PAIRS += [
  (name, inner, outer)
  for name in ('l2p: beside lora', 'olora')
  for inner, outer in itertools.pairwise([*WRAPPERS, next(iter(WRAPPERS))])
]


@pytest.mark.parametrize(('name', 'inner', 'outer'), PAIRS)
def test_wrappers_nest_in_any_order(name, inner, outer):
  method = method_of(f'{outer}({inner}({name}))')
  assert method.name == f'{outer}({inner}({method_of(name).name}))'
  frozen = jax.eval_shape(backbone_of(method).init, jax.random.key(0))
  some = batch(method.inputs.shape, CLASSES[0], 0)
  start, end = jax.eval_shape(lambda f, b: life(method, f, b), frozen, some)
  assert shapes(start) == shapes(end)
