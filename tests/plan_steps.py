"""Steps of models so small that compiling them takes a second."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.backbones import architecture
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.catalog import method_by_name
from pecft_jax.plan.estimate import abstract_batch, abstract_state
from pecft_jax.train import adam
from pecft_jax.train.update import train_step
from pecft_jax.typing import Backbone, Capacity, Env

CAPACITY = Capacity(tasks=3, classes=12)
RECIPE = adam(1e-3)
DEPTHS = {'small': 2, 'one block': 1}


@functools.cache
def backbone_of(name: str) -> Backbone:
  """A small ViT, or the backbone of a card."""
  if name in DEPTHS:
    return vit(
      image_size=32, patch=8, width=96, depth=DEPTHS[name], heads=3, mean=(0.5,) * 3,
      std=(0.5,) * 3,
    )  # fmt: skip
  return architecture(name)


@functools.cache
def frozen_of(name: str) -> Any:
  """Shapes of its weights."""
  return jax.eval_shape(backbone_of(name).init, jax.eval_shape(lambda: jax.random.key(0)))


def step_of(name: str, peft: str | None, method: str = 'finetune') -> Any:
  """A training step, a prediction, and the shapes of their arguments (state, frozen, batch)."""
  backbone, frozen = backbone_of(name), frozen_of(name)
  learner = method_by_name(method, backbone, CAPACITY, peft=peft)
  args = (
    abstract_state(learner, RECIPE, frozen),
    frozen,
    abstract_batch(learner, frozen, 8),
  )
  train = lambda s, f, b: train_step(learner, RECIPE, s, f, b)
  predict = lambda s, f, b: learner.predict(s.params, s.memory, Env(f, s.task), b.x)
  return train, predict, args


@functools.cache
def compiled(name: str, peft: str, what: str) -> Any:
  """The compiled program of a training step or a prediction, for the CPU."""
  train, predict, args = step_of(name, peft)
  step = {'train': train, 'predict': predict}[what]
  donated = {'train': (0,), 'predict': ()}[what]
  lowered = jax.jit(step, donate_argnums=donated).lower(*args)
  # Machine code that is not optimised computes the same operations.
  return lowered.compile(compiler_options={'xla_backend_optimization_level': 0})


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
  """The shape of an array."""
  return jax.ShapeDtypeStruct(sizes, dtype)
