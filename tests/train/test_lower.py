import functools
import io

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_runs import MEASURED

from pecft_jax import continual, data
from pecft_jax.backbones import architecture
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.data import Augmentation
from pecft_jax.peft import lora, nothing
from pecft_jax.plan import plan_experiment
from pecft_jax.plan.cost import flops
from pecft_jax.plan.estimate import abstract_batch, abstract_state, training_step
from pecft_jax.train import Experiment, RunOptions, Training, run, run_seeds, sgd
from pecft_jax.train.lower import lower_of
from pecft_jax.typing import Below, Capacity, Given, Pretrained

TOP = lora('block_1/', rank=2)
EXAMPLE = 5 * 8 * 4  # Bytes: tokens x width x float32.


@functools.cache
def model():
  backbone = vit(
    image_size=4, channels=1, patch=2, width=8, depth=2, heads=2, mlp_ratio=1.5, mean=(0.5,),
    std=(0.25,),
  )  # fmt: skip
  return Pretrained(backbone, jax.jit(backbone.init)(jax.random.key(7)))


@functools.cache
def scenario(tasks=2):
  rng = np.random.default_rng(0)

  def source(count):
    images = rng.integers(0, 255, (count, 4, 4, 1), np.uint8)
    return data.arrays('noise', images, np.arange(count) % (2 * tasks))

  return data.class_incremental(source(22), source(10), tasks=tasks)


@functools.cache  # Runs of one experiment share their compiled functions.
def experiment(make=continual.finetune, peft=TOP, tasks=2, **training):
  method = make(model().backbone, scenario(tasks).capacity, peft=peft)
  settings = {'epochs': 2, 'batch_size': 4, 'eval_batch_size': 4, **training}
  return Experiment(model(), scenario(tasks), method, Training(sgd(0.1), **settings))


def found(each, limit=None):
  return lower_of(each, each.method, limit)


def ewc(backbone, capacity, peft):
  return continual.ewc(continual.finetune(backbone, capacity, peft=peft), strength=1.0)


def computed(results):
  """All that does not depend on time, and not on what other runs of this process compiled."""
  timed = (*MEASURED, 'efficiency', 'compilations')
  return {key: value for key, value in results.items() if key not in timed}


@pytest.mark.parametrize(('make', 'in_files'), [(ewc, False), (continual.finetune, True)])
def test_a_run_is_the_same_to_the_bit(make, in_files, tmp_path):
  each = experiment(make)
  folder = tmp_path / 'kept' if in_files else None
  text = io.StringIO()
  without = run(each, tmp_path / 'a', RunOptions(console=Console(quiet=True), tokens_kept=0))
  told = RunOptions(console=Console(file=text, width=200), tokens_in=folder)
  assert computed(run(each, tmp_path / 'b', told)) == computed(without)
  assert 'computed once per example: block 0, training and tests' in text.getvalue()
  assert folder is None or not list(folder.iterdir())


def test_a_run_may_go_on_without_what_was_kept(tmp_path, interrupt):
  each, quiet = experiment(), Console(quiet=True)
  whole = run(each, tmp_path / 'a', RunOptions(console=quiet))
  for tick, limit in ((3, None), (9, 0)):
    interrupt(tick)
    with pytest.raises(Exception, match='stopped at'):
      run(each, tmp_path / 'b', RunOptions(console=quiet, tokens_kept=limit))
  interrupt(None)
  assert computed(run(each, tmp_path / 'b', RunOptions(console=quiet))) == computed(whole)


def test_seeds_side_by_side_share_what_is_kept(tmp_path):
  each, quiet = experiment(), Console(quiet=True)
  kept = run_seeds(each, [0, 1], tmp_path / 'a', RunOptions(console=quiet))
  anew = run_seeds(each, [0, 1], tmp_path / 'b', RunOptions(console=quiet, tokens_kept=0))
  assert [computed(one) for one in kept] == [computed(one) for one in anew]


@pytest.mark.parametrize(
  ('each', 'note'),
  [
    (lambda: experiment(peft=lora('block_0/', rank=2)), 'acts in block 0 or before it'),
    (lambda: experiment(peft=lora('patch|block_1', rank=2)), 'acts in block 0 or before it'),
    (lambda: experiment(peft=nothing()), 'no transform acts in any block'),
    (lambda: experiment(continual.l2p, peft=None), 'no transform acts in any block'),
  ],
)
def test_nothing_is_kept_where_it_would_be_wrong(each, note):
  lower = found(each())
  assert not lower.kept
  assert note in str(lower)


def test_training_examples_are_kept_only_where_passes_see_the_same():
  flips = Augmentation(lambda images, uniforms: images, 1)
  lower = found(experiment(augment=flips))
  assert (lower.training, lower.tests) == (False, True)
  assert 'augmented at random' in str(lower)
  lower = found(experiment(epochs=1))
  assert not lower.training
  assert 'each training example is passed once' in lower.notes
  assert not found(experiment(epochs=1, tasks=1)).kept


def test_other_batch_sizes_leave_other_passes_as_they_are():
  # Sums of another shape may be rounded differently.
  lower = found(experiment(ewc, eval_batch_size=5))
  assert (lower.training, lower.gathered) == (True, False)


def test_the_bound_is_kept():
  rows = len(scenario().tasks[0].train.rows)
  lower = found(experiment(), limit=rows * EXAMPLE)
  assert (lower.training, lower.tests, lower.kept) == (True, False, rows * EXAMPLE)
  assert 'tokens of test examples take' in str(lower)
  assert not found(experiment(), limit=EXAMPLE).kept


def test_a_step_of_a_vit_b_leaves_the_lower_blocks_out():
  backbone = architecture('vit_base_patch16_224')
  frozen = jax.eval_shape(backbone.init, jax.random.key(0))
  top = lora('block_(8|9|10|11)/attn/(q|v)', rank=8)
  method = continual.finetune(backbone, Capacity(tasks=2, classes=4), peft=top)
  recipe = sgd(0.1)
  state = abstract_state(method, recipe, frozen)
  batch = abstract_batch(method, frozen, 8)
  tokens = jax.ShapeDtypeStruct((8, 197, 768), np.float32)
  given = batch._replace(x=Given(batch.x, below=Below(tokens, 8)))
  whole, entered = (
    flops(training_step(method, recipe), state, frozen, each, turns=2) for each in (batch, given)
  )
  # Per token, two FLOPs for each of 12 D^2 weights of a block, and attention; and the patches.
  block = 8 * 197 * (24 * 768**2 + 4 * 197 * 768)
  patches = 8 * 196 * 2 * 768**2
  assert whole - entered == pytest.approx(8 * block + patches, rel=0.03)


def test_a_plan_says_what_is_computed_once():
  each = experiment()
  planned = plan_experiment(each)
  assert str(planned.lower) == 'block 0, training and tests, 3.52 kB'
  without = plan_experiment(each.replace(training=each.training._replace(epochs=1)))
  assert 'each training example is passed once' in str(without.lower)
  assert planned.step < without.step
