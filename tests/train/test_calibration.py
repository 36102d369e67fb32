"""Transforms that are calibrated on a task's data before it is trained, and others with a life."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_passes import passed
from tiny_runs import (
  outcome,
  quiet,
  tiny_backbone,
  tiny_experiment,
  tiny_frozen,
)

from pecft_jax.continual import ease, finetune
from pecft_jax.continual.plan import plan_of
from pecft_jax.peft import chain, fish, full, lora, rosa, scaled_outputs
from pecft_jax.train import RunOptions, Stopped, run
from pecft_jax.train.phases import with_awake_head
from pecft_jax.train.schedule import gathered_split
from pecft_jax.typing import Calibration, Capacity, LinearHead

PATH = 'block_0/attn/q'
CAPACITY = Capacity(2, 4)


def directions():
  """LoRA whose A is the leading directions of what arrives at the site (as EVA's, unscaled)."""
  peft = lora('attn/q$', rank=2)

  def watch(site, args, out):
    return args[0] if site.kind == 'linear' and site.path == PATH else None

  def add(moments, taps, valid):
    x = taps[f'linear:{PATH}'] * valid[:, None, None]
    rows = x.reshape(-1, x.shape[-1])
    return moments + rows.T @ rows

  def finish(delta, moments):
    leaf = delta[PATH]
    return {PATH: leaf._replace(a=jnp.linalg.eigh(moments)[1][:, ::-1][:, :2])}

  empty = lambda delta, weights: jnp.zeros((delta[PATH].a.shape[0],) * 2)
  return peft._replace(calibrate=Calibration(watch, empty, add, finish))


def experiment(method):
  return dataclasses.replace(tiny_experiment(), method=method)


def stopping_at(name, monkeypatch, batch=1):
  """Runs until a phase has done a number of batches, then stops."""
  from pecft_jax.train import job

  plain = job.run_tasks

  def stopped(loop, state, position):
    after = loop.after_batch

    def note(state, position):
      after(state, position)
      if position.phase == name and position.batch == batch:
        raise Stopped('here')

    return plain(dataclasses.replace(loop, after_batch=note), state, position)

  monkeypatch.setattr(job, 'run_tasks', stopped)


def test_a_delta_starts_from_the_statistics_of_the_first_task(tmp_path, monkeypatch):
  seen = {}
  peft = directions()
  finish = peft.calibrate.finish

  def spy(delta, moments):
    new = finish(delta, moments)
    jax.debug.callback(lambda m, a: seen.update(moments=m, a=a), moments, new[PATH].a)
    return new

  peft = peft._replace(calibrate=peft.calibrate._replace(finish=spy))
  each = experiment(finetune(tiny_backbone(), CAPACITY, peft=peft))
  run(each, tmp_path, RunOptions(console=quiet()))
  task = each.scenario.tasks[0].train
  images = (task.inputs[task.rows] / 255 - 0.5) / 0.25
  x = np.float64(images[..., 0]) @ np.float64(tiny_frozen()['embed']['kernel'])
  x = np.concatenate([np.zeros_like(x[:, :1]), x], 1)
  x = x + x.mean(1, keepdims=True)
  rows = x.reshape(-1, x.shape[-1])
  np.testing.assert_allclose(seen['moments'], rows.T @ rows, rtol=1e-4, atol=1e-4)
  u, _, _ = np.linalg.svd(rows.T @ rows)
  a = np.float64(seen['a'])
  np.testing.assert_allclose(a @ a.T, u[:, :2] @ u[:, :2].T, atol=1e-3)


@pytest.mark.parametrize('phase', ['calibrate delta', 'calibrated delta'])
def test_a_run_that_stops_within_goes_on_as_if_it_had_not(tmp_path, monkeypatch, phase):
  method = finetune(
    tiny_backbone(), CAPACITY, peft=chain(low=directions(), scale=scaled_outputs('attn/q$'))
  )
  whole = run(experiment(method), tmp_path / 'whole', RunOptions(console=quiet()))
  with monkeypatch.context() as patch, pytest.raises(Stopped):
    stopping_at(phase, patch)
    run(experiment(method), tmp_path / 'parts', RunOptions(console=quiet(), save_every=0.0))
  again = run(experiment(method), tmp_path / 'parts', RunOptions(console=quiet()))
  assert again['state_sha256'] == whole['state_sha256']
  assert outcome(tmp_path / 'parts') == outcome(tmp_path / 'whole')
  assert set(whole['compilations'].values()) == {1}


# Six of a task's twelve examples, five a batch.
BY_GRADIENTS = {
  'fish': lambda: fish('attn/q', share=0.1, examples=6),
  'rosa': lambda: rosa('attn/q$', rank=2, density=0.1, examples=6),
}


@pytest.mark.parametrize('name', BY_GRADIENTS)
def test_a_run_that_stops_within_a_pass_over_gradients_goes_on(tmp_path, monkeypatch, name):
  method = finetune(tiny_backbone(), CAPACITY, peft=BY_GRADIENTS[name]())
  whole = run(experiment(method), tmp_path / 'whole', RunOptions(console=quiet()))
  with monkeypatch.context() as patch, pytest.raises(Stopped):
    stopping_at('calibrate delta', patch)
    run(experiment(method), tmp_path / 'parts', RunOptions(console=quiet(), save_every=0.0))
  again = run(experiment(method), tmp_path / 'parts', RunOptions(console=quiet()))
  assert again['state_sha256'] == whole['state_sha256']
  assert outcome(tmp_path / 'parts') == outcome(tmp_path / 'whole')
  assert set(whole['compilations'].values()) == {1}


def test_a_pass_over_gradients_takes_as_many_examples_as_asked_drawn_from_all():
  each = experiment(finetune(tiny_backbone(), CAPACITY, peft=BY_GRADIENTS['fish']()))
  step = plan_of(each.method)[1]
  some = [gathered_split(each, each.method, step, t) for t in range(2)]
  for t, split in enumerate(some):
    own = each.scenario.tasks[t].train
    assert len(split.rows) == 6 and set(split.rows) < set(own.rows)
    labels = dict(zip(own.rows, own.labels, strict=True))
    assert [labels[row] for row in split.rows] == list(split.labels)
  assert len(set(some[0].labels)) == 2  # The data are sorted by class.


def test_gradients_that_are_all_zero_are_refused(tmp_path):
  peft = chain(whole=full(), some=BY_GRADIENTS['fish']())  # No frozen weight is left.
  with pytest.raises(ValueError, match='calibrate delta: all gradients are zero'):
    run(
      experiment(finetune(tiny_backbone(), CAPACITY, peft=peft)),
      tmp_path,
      RunOptions(console=quiet()),
    )


def test_only_columns_of_a_head_that_are_zero_become_random():
  method = finetune(tiny_backbone(), CAPACITY, peft=lora('.', rank=2))
  kernel = jnp.eye(3, 4)
  params = {'head': LinearHead(kernel, jnp.ones(4)), 'rest': kernel}
  new = with_awake_head(method, params, jax.random.key(0))
  np.testing.assert_array_equal(new['head'].kernel[:, :3], kernel[:, :3])
  assert (new['head'].kernel[:, 3] != 0).all()
  np.testing.assert_array_equal(new['rest'], kernel)


def test_parts_of_a_chain_share_a_pass_over_the_same_examples():
  part = rosa('attn/q$', rank=2, density=0.1)
  both = chain(low=directions(), sparse=part)
  (before, statistics, after), alone = passed(both), passed(part)
  np.testing.assert_allclose(statistics['sparse'][PATH], alone[1][PATH], rtol=1e-5)
  assert np.abs(after['low'][PATH].a - before['low'][PATH].a).max() > 1e-3
  with pytest.raises(ValueError, match='share one pass'):
    chain(low=directions(), sparse=BY_GRADIENTS['rosa']())


def test_fresh_deltas_are_calibrated_in_every_task_others_once(tmp_path):
  counts = {}
  for make in (finetune, ease):
    calls, peft = [], directions()
    add = peft.calibrate.add

    def spy(statistics, taps, valid, calls=calls, add=add):
      jax.debug.callback(lambda: calls.append(1))
      return add(statistics, taps, valid)

    peft = peft._replace(calibrate=peft.calibrate._replace(add=spy))
    method = make(tiny_backbone(), CAPACITY, peft=peft)
    run(experiment(method), tmp_path / method.name, RunOptions(console=quiet()))
    jax.effects_barrier()
    counts[method.name] = len(calls)
  assert counts == {'finetune': 3, 'ease': 6}  # 12 examples a task, 5 a batch.


def test_a_penalty_and_a_hook_after_updates_are_called_by_the_trainer(tmp_path):
  plain = lora('attn/q$', rank=2)
  held = plain._replace(after=lambda delta, grads, progress: jax.tree.map(jnp.zeros_like, delta))
  method = finetune(tiny_backbone(), CAPACITY, peft=held)
  frozen = finetune(tiny_backbone(), CAPACITY, peft=chain(nothing=plain._replace(init=_none)))
  same = [
    run(experiment(each), tmp_path / name, RunOptions(console=quiet()))['accuracy_matrix']
    for name, each in {'held': method, 'frozen': frozen}.items()
  ]
  assert same[0][-1] == same[1][-1]
  strong = plain._replace(
    penalty=lambda delta: 3.0 + sum(jnp.square(a).sum() for a in jax.tree.leaves(delta))
  )
  losses = {}
  for name, peft in {'plain': plain, 'strong': strong}.items():
    method = finetune(tiny_backbone(), CAPACITY, peft=peft)
    run(experiment(method), tmp_path / f'penalty {name}', RunOptions(console=quiet()))
    rows = outcome(tmp_path / f'penalty {name}')['rows']
    losses[name] = next(row['loss'] for row in rows if row['kind'] == 'train')
  assert losses['strong'] > losses['plain'] + 2.5


def _none(key, sites, params):
  return {}
