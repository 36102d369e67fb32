"""Experiments on a model so small that compiling and running it takes next to no time."""

import functools
import io
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from markov import markov_domains
from rich.console import Console
from tinies import needs_of, tiny

from pecft_jax import data
from pecft_jax.backbones.core.layers import linear
from pecft_jax.backbones.core.taps import put_on, tap_of
from pecft_jax.backbones.families.decoder.model import decoder
from pecft_jax.backbones.families.vit.model import find_sites, vit
from pecft_jax.inputs import Images
from pecft_jax.problems import next_tokens
from pecft_jax.train import Experiment, RunOptions, Training, sgd
from pecft_jax.typing import (
  Backbone,
  Capacity,
  ContinualMethod,
  Features,
  Params,
  Pretrained,
  Site,
)

SIZE, WIDTH, LENGTH = 4, 8, 5
# All that may differ between two runs of one experiment: what was measured, not computed.
MEASURED = (
  'seconds', 'seconds_per_task', 'compile_seconds', 'train_images_per_second', 'peak_memory_bytes',
  'environment',
)  # fmt: skip


@functools.cache
def tiny_backbone() -> Backbone:
  """Rows of pixels as tokens, one linear layer with mixing between tokens."""
  shape = (SIZE, SIZE, 1)

  def init(key):
    kernel = lambda key, rows: jax.random.normal(key, (rows, WIDTH)) / rows**0.5
    k_embed, k_mix = jax.random.split(key)
    return {
      'embed': {'kernel': kernel(k_embed, SIZE)},
      'block_0': {'attn': {'q': {'kernel': kernel(k_mix, WIDTH), 'bias': jnp.zeros(WIDTH)}}},
    }

  def apply(params, inputs, delta=None, *, peft=None, key=None, rows=None, watch=None):
    delta, params = put_on(peft, delta, params, key)
    taps = {}
    tap = tap_of(peft, delta, watch, taps)
    weights = params['block_0']['attn']['q']

    def encoder(x, mask):
      del mask
      x = x + x.mean(1, keepdims=True)
      site = Site('linear', 'block_0/attn/q')
      return jnp.tanh(tap(site, linear, x[:, :rows], weights['kernel'], weights['bias']))

    x = inputs[..., 0] @ params['embed']['kernel']
    x = jnp.concatenate([jnp.zeros_like(x[:, :1]), x], 1)
    x = tap(Site('tokens', 'encoder', lead=1), encoder, x, None)
    return Features(x[:, 0], x, taps)

  spec = Images(shape, (0.5,), (0.25,))
  # Its layers are named as a vision transformer's, so adapters of it can be exported.
  sites = find_sites(apply, init, shape)
  return Backbone('tiny', init, apply, sites, spec, WIDTH, 1, family='vit')


@functools.cache
def tiny_vit() -> Backbone:
  """A vision transformer of one block, which has every kind of site."""
  return vit(
    image_size=SIZE, channels=1, patch=2, width=WIDTH, depth=1, heads=2, mlp_ratio=1.5,
    mean=(0.5,), std=(0.25,),
  )  # fmt: skip


@functools.cache
def tiny_frozen() -> Params:
  """Weights of the backbone."""
  return tiny_backbone().init(jax.random.key(7))


@functools.cache
def tiny_scenario(tasks: int = 2, train: int = 12, test: int = 6) -> data.Scenario:
  """Two classes a task, distinguished by the place of a bright pixel."""

  def source(count: int, seed: int) -> data.Source:
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * tasks).repeat(count // 2)
    images = rng.integers(0, 128, (len(labels), SIZE, SIZE, 1), np.uint8)
    images.reshape(len(labels), -1)[np.arange(len(labels)), labels] = 255
    return data.arrays('tiny', images, labels)

  return data.class_incremental(source(train, 0), source(test, 1), tasks=tasks)


TRAINING = Training(sgd(0.05), epochs=2, batch_size=4, eval_batch_size=5, log_every=4)


class World(NamedTuple):
  """A model, and what it learns."""

  model: Pretrained
  scenario: data.Scenario
  capacity: Capacity


@functools.cache
def tiny_world(kind: str = '', tasks: int = 2) -> World:
  """What a method learns that needs nothing in particular, or `adapters`, or `texts`."""
  if kind == 'texts':
    reader = decoder(
      vocabulary=6, width=8, depth=1, heads=2, kv_heads=1, hidden=6, length=LENGTH
    )  # fmt: skip
    scenario = markov_domains(tasks, vocabulary=6, length=LENGTH, train=12, test=6)
    return World(_drawn(reader), scenario, Capacity(tasks, 1, next_tokens(LENGTH)))
  if kind == 'adapters':
    return World(_drawn(tiny_vit()), tiny_scenario(tasks), Capacity(tasks, 2 * tasks))
  model = Pretrained(tiny_backbone(), tiny_frozen())
  return World(model, tiny_scenario(tasks), Capacity(tasks, 2 * tasks))


@functools.cache
def _drawn(backbone: Backbone) -> Pretrained:
  return Pretrained(backbone, jax.jit(backbone.init)(jax.random.key(7)))


def world_of(method: str, tasks: int = 2) -> World:
  """The world that serves what a method, by name, says that it needs."""
  needs = needs_of(method)
  # Transforms are shown on a model that has every kind of site.
  blocks = {'adapters', 'attention'} & needs or '[' in method
  return tiny_world('texts' if 'texts' in needs else 'adapters' if blocks else '', tasks)


@functools.cache
def tiny_method(name: str, tasks: int = 2) -> ContinualMethod:
  """A method by name: `ease`, `derpp(olora)`, `finetune[lora]`, ..."""
  world = world_of(name, tasks)
  return tiny(name, world.model.backbone, world.capacity)


def tiny_experiment(method: str = 'finetune', tasks: int = 2, **fields: Any) -> Experiment:
  """An experiment of some tasks, in the world that the method needs."""
  world = world_of(method, tasks)
  experiment = Experiment(world.model, world.scenario, tiny_method(method, tasks), TRAINING)
  return experiment.replace(**fields)


def quiet() -> Console:
  """A console whose `file.getvalue()` is what was printed."""
  return Console(file=io.StringIO(), width=400)


def silent(**fields: Any) -> RunOptions:
  """Options of a run that prints nothing."""
  return RunOptions(console=quiet(), **fields)


def unmeasured(value: Any) -> Any:
  """JSON without what was measured."""
  if isinstance(value, dict):
    return {k: unmeasured(v) for k, v in value.items() if k not in MEASURED}
  return [unmeasured(v) for v in value] if isinstance(value, list) else value


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
  """All that a run left behind and that must not depend on how it was interrupted."""
  rows = (workdir / 'metrics.jsonl').read_text().splitlines()
  results = json.loads((workdir / 'results.json').read_text())
  return {'rows': [unmeasured(json.loads(row)) for row in rows], 'results': unmeasured(results)}
