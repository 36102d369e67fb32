"""Every transform with every method: it runs, or the reason why not is said at construction."""

import functools

import jax
import numpy as np
import pytest

from pecft_jax.about import tinies
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.continual import METHODS as ALL
from pecft_jax.continual import WRAPPERS, derpp, ease, ewc, finetune, joint, l2p, olora, ranpac
from pecft_jax.paths import named_leaves
from pecft_jax.peft import PEFTS
from pecft_jax.problems import next_tokens, regression
from pecft_jax.train.phases import Run, begin
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step
from pecft_jax.typing import Env

from .tiny import CAPACITY, CLASSES, MODEL, RECIPE, batch, task

METHODS = {
  'finetune': finetune,
  'joint': joint,
  'l2p': functools.partial(l2p, pool=5, length=2),
  'olora': olora,
  'ease': ease,
  'ranpac': functools.partial(ranpac, projection=40),
  'ewc(derpp)': lambda *parts, **options: ewc(derpp(finetune(*parts, **options), size=11)),
}
# What cannot go together, with a piece of the message.
REFUSED = {
  **{('olora', name): 'needs a transform whose delta is LoRA' for name in PEFTS},
  ('ease', 'linear_probe'): 'trains something of the backbone',
}
del REFUSED['olora', 'lora'], REFUSED['olora', 'rslora']


def one_step(method, frozen, some):
  state = init_state(method, RECIPE, jax.random.key(0), frozen)
  state = begin(Run(method, RECIPE), state, frozen, task(0))
  after, log = train_step(method, RECIPE, state, frozen, some)
  params, memory = after.params, after.memory
  logits = method.predict(params, memory, Env(frozen, task(0)), some.x)
  return state, after, log, logits


@pytest.mark.parametrize('peft', sorted(PEFTS))
@pytest.mark.parametrize('name', METHODS)
def test_every_pair_takes_a_step_or_says_why_not(name, peft):
  build = lambda: METHODS[name](MODEL, CAPACITY, peft=PEFTS[peft]())
  if (name, peft) in REFUSED:
    with pytest.raises(ValueError, match=REFUSED[name, peft]):
      build()
    return
  method = build()
  frozen = jax.eval_shape(MODEL.init, jax.random.key(0))
  some = batch(method.inputs.shape, CLASSES[0], 0)
  state, after, log, logits = jax.eval_shape(lambda f, b: one_step(method, f, b), frozen, some)
  shapes = lambda tree: [(path, leaf.shape, leaf.dtype) for path, leaf in named_leaves(tree)]
  assert shapes(state) == shapes(after)
  assert log.loss.shape == () and logits.shape == (5, 7)


# Methods that say at construction that they mean classes, by the beginning of their names.
MEAN_CLASSES = ('aligned', 'derpp', 'ease', 'icarl', 'lae', 'ranpac', 'sema', 'simplecil', 'slca')
BUILDERS = {
  **{name: make for name, make in tinies(ALL).items() if not name.startswith('language_model')},
  **{name: lambda b, c, m=make: m(plain(b, c)) for name, make in tinies(WRAPPERS).items()},
}


def plain(backbone, capacity):
  return finetune(backbone, capacity, peft=PEFTS['lora']('.', rank=2))


@pytest.mark.parametrize('name', BUILDERS)
def test_every_method_learns_numbers_or_says_that_it_means_classes(name):
  build = lambda: BUILDERS[name](MODEL, CAPACITY._replace(problem=regression(7)))
  if name.startswith(MEAN_CLASSES):
    with pytest.raises(ValueError, match=f'{name.split(":")[0]} needs classes'):
      build()
    return
  frozen = jax.eval_shape(MODEL.init, jax.random.key(0))
  some = batch(MODEL.inputs.shape, CLASSES[0], 0)
  some = some._replace(y=np.zeros((len(some.y), 7), np.float32))
  *_, log, answers = jax.eval_shape(lambda f, b: one_step(build(), f, b), frozen, some)
  assert log.loss.shape == () and answers.shape == (5, 7)


@pytest.mark.parametrize('name', BUILDERS)
def test_every_method_for_one_row_of_answers_refuses_tokens_and_other_widths(name):
  for problem in (next_tokens(4), regression(3)):
    with pytest.raises(ValueError, match=f'the problem is {problem.name}'):
      BUILDERS[name](MODEL, CAPACITY._replace(problem=problem))


def test_a_pattern_without_sites_is_refused_at_construction():
  for build in (finetune, joint, ease, ranpac, olora):
    with pytest.raises(ValueError, match="no 'linear' site matches 'nowhere'; sites: "):
      build(MODEL, CAPACITY, peft=PEFTS['lora']('nowhere'))


def test_a_stacked_backbone_serves_as_well():
  stacked = vit(
    image_size=16, channels=1, patch=8, width=24, depth=3, heads=2, mean=(0.5,), std=(0.5,),
    scan=True,
  )  # fmt: skip
  frozen = jax.eval_shape(stacked.init, jax.random.key(0))
  for name in ('l2p', 'olora', 'ease'):
    method = METHODS[name](stacked, CAPACITY, peft=PEFTS['lora']())
    some = batch(method.inputs.shape, CLASSES[0], 0)
    *_, logits = jax.eval_shape(lambda f, b, m=method: one_step(m, f, b), frozen, some)
    assert logits.shape == (5, 7)
