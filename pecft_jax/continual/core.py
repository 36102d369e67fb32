"""What continual methods share: features, heads, masked losses, and their assembly."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pecft_jax.typing import (
  Array,
  Backbone,
  Batch,
  Cached,
  Capacity,
  ContinualMethod,
  Delta,
  Env,
  Inputs,
  InputSpec,
  Key,
  Output,
  Params,
  PeftTransform,
)

_OUT = -1e9  # The logit of a class that may not be chosen: finite, so that gradients are.


class Head(NamedTuple):
  """A linear classifier over all classes that the sequence can hold."""

  kernel: Array  # [D, C]
  bias: Array  # [C]


def zero_head(width: int, classes: int) -> Head:
  """A head that is fair to every class before it has seen any."""
  return Head(jnp.zeros((width, classes)), jnp.zeros(classes))


def head_logits(head: Head, features: Array) -> Array:
  """[B, D] -> [B, C]"""
  return features @ head.kernel + head.bias


def normalised(inputs: InputSpec, x: Array) -> Array:
  """uint8 images to the value range that the backbone expects; token ids as they are.

  Raises:
    TypeError: for any other dtype: what values mean is never guessed from them.
  """
  if inputs.pad is not None:
    if x.dtype != inputs.dtype:
      raise TypeError(f'token ids must be {inputs.dtype}, got {x.dtype}')
    return x
  if x.dtype != jnp.uint8:
    raise TypeError(f'images must be uint8, got {x.dtype}; their range belongs to the backbone')
  mean = jnp.asarray(inputs.mean) * 255.0
  std = jnp.asarray(inputs.std) * 255.0
  return (x.astype(jnp.float32) - mean) / std


def raw(x: Inputs) -> Array:
  """The images or token ids of a batch, with or without a cached query."""
  return x.x if isinstance(x, Cached) else x


class Model(NamedTuple):
  """A backbone with a transform on it, as two functions of the frozen weights."""

  init: Callable[[Key, Params], Delta]  # (key, frozen) -> delta
  features: Callable[..., Array]  # (frozen, delta, x, key=None) -> [B, D]


def model(backbone: Backbone, peft: PeftTransform) -> Model:
  """Joins a backbone and a transform; computes just what the pooled feature reads.

  Raises:
    ValueError: if the transform finds no site in the backbone.
  """
  abstract_delta(backbone, peft)

  def init(key, frozen):
    return peft.init(key, backbone.sites, frozen)

  def features(frozen, delta, x, key=None):
    x = normalised(backbone.inputs, raw(x))
    return backbone.apply(frozen, x, delta, peft=peft, key=key, rows=1).pooled

  return Model(init, features)


def abstract_delta(backbone: Backbone, peft: PeftTransform) -> Delta:
  """The shapes of a transform's delta on a backbone, at no cost.

  Raises:
    ValueError: if the transform finds no site in the backbone.
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(backbone.init, key)
  return jax.eval_shape(lambda k, p: peft.init(k, backbone.sites, p), key, params)


def frozen_features(backbone: Backbone, frozen: Params, x: Inputs) -> Array:
  """The pooled feature of the backbone alone [B, D]; read off the cache where there is one."""
  if isinstance(x, Cached):
    return x.query
  images = normalised(backbone.inputs, x)
  return jax.lax.stop_gradient(backbone.apply(frozen, images, rows=1).pooled)


def mean_of_valid(values: Array, valid: Array) -> Array:
  """The mean of [B] values over valid examples; 0 if there are none."""
  return jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)


def cross_entropy(logits: Array, labels: Array, allowed: Array) -> Array:
  """Per-example cross-entropy [B] over the allowed classes.

  Args:
    logits: [B, C]
    labels: [B] int32, each of an allowed class.
    allowed: [C] bool; other classes are left out of the softmax.
  """
  logits = jnp.where(allowed, logits.astype(jnp.float32), _OUT)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def only(seen: Array, logits: Array) -> Array:
  """Logits [B, C] with -inf for classes not seen yet."""
  return jnp.where(seen, logits, -jnp.inf)


def unit(x: Array) -> Array:
  """Vectors of length 1 along the last axis; zero stays zero."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def from_forward(
  name: str,
  backbone: Backbone,
  capacity: Capacity,
  init: Callable[..., Any],
  forward: Callable[..., Output],
  *,
  masked: bool,
  **hooks: Any,
) -> ContinualMethod:
  """Completes a method from its forward pass: cross-entropy plus its own regulariser.

  Args:
    name: for reports.
    backbone: that it stands on.
    capacity: of its state.
    init: as in `ContinualMethod`.
    forward: as in `ContinualMethod`.
    masked: train with the softmax over the task's own classes only (the
      field's masked or local cross-entropy), else over all classes seen.
    **hooks: any other field of `ContinualMethod`.
  """

  def loss(params, memory, env: Env, batch: Batch, key):
    out = forward(params, memory, env, batch.x, key)
    allowed = env.task.classes if masked else env.task.seen
    losses = cross_entropy(out.logits, batch.y, allowed) + out.aux_loss
    return mean_of_valid(losses, batch.valid), out

  def predict(params, memory, env: Env, x):
    return only(env.task.seen, forward(params, memory, env, x, None).logits)

  fields = {'loss': loss, 'predict': predict, **hooks}
  return ContinualMethod(name, capacity, backbone.inputs, init, forward, **fields)
