"""FLOPs counted by hand are nearly all of those that the programs have, and never more."""

import pathlib
import sys
from typing import Any

import jax
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / 'experiments'))

import bench_ours
from contest import LLAMA_58M, ON_CPU, Texts
from needed import items, needed

from pecft_jax.plan import flops
from pecft_jax.train import adam, compile_steps, one_device
from pecft_jax.train.abstract import arguments

TEXT = Texts(LLAMA_58M._replace(depth=3), 8, 128)
RIG = ON_CPU._replace(
  vit=ON_CPU.vit._replace(depth=3),
  subspaces_vit=ON_CPU.subspaces_vit._replace(depth=3),
  texts={
    'classifier': TEXT,
    'everywhere': TEXT._replace(everywhere=True),
    'language model': TEXT._replace(next_tokens=True, everywhere=True),
  },
)


def counted(method, batch: int) -> float:
  """FLOPs of a method's step, from shapes."""
  frozen = jax.eval_shape(method.backbone.init, jax.random.key(0))
  steps: Any = compile_steps(method, adam(1e-3), one_device(), frozen)
  given = arguments(steps, method, frozen, batch)
  return flops(steps.train, *given.train)


@pytest.mark.parametrize('contest', ['lora', 'l2p', 'ease'])
def test_a_step_on_images(contest):
  backbone = bench_ours.vision(RIG.vit, RIG)
  method = bench_ours.METHODS[contest](backbone, bench_ours.capacity(RIG))
  assert 1 <= counted(method, RIG.batch) / needed(contest, RIG) < 1.05


@pytest.mark.parametrize('contest', RIG.texts)
def test_a_step_on_texts(contest):
  texts = RIG.texts[contest]
  share = counted(bench_ours.reader(RIG, texts), texts.batch) / needed(contest, RIG)
  # Attention computes what causality masks, its scores again, and in the last block queries that
  # nothing reads: of three narrow blocks that is a large part.
  assert 1 <= share < 1.2


def test_a_prediction_shares_what_is_before_the_first_adapter():
  one, many = (needed('subspaces', RIG._replace(subspaces=tasks)) for tasks in (1, 20))
  rig = RIG._replace(vit=RIG.subspaces_vit, batch=RIG.subspaces_batch)
  features = needed('features', rig)
  assert features < one < 1.1 * features  # Adapters.
  assert 10 * features < many < 20 * features


def test_a_cached_query_saves_a_forward_pass():
  saved = needed('l2p', RIG) - needed('l2p_cached', RIG)
  assert saved == needed('features', RIG)


def test_items_are_images_or_tokens():
  assert items('lora', RIG) == (8, 'images')
  assert items('classifier', RIG) == (8 * 128, 'tokens')
  assert needed('feed', RIG) is None
