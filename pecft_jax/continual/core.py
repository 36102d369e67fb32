"""Shared parts of continual methods: features, heads, masked losses, and their assembly."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.peft.halves import split_kept
from pecft_jax.peft.lowest import asks_below, lowest_block
from pecft_jax.typing import (
  Array,
  Backbone,
  Batch,
  Below,
  Capacity,
  ContinualMethod,
  Delta,
  Env,
  Features,
  Given,
  Head,
  Inputs,
  InputSpec,
  Key,
  LinearHead,
  Output,
  Params,
  Parts,
  PeftTransform,
  Watch,
)

# The number of the key of a head among those of a method's `init`; `split` never draws it.
_HEAD = 2**32 - 2


def new_head(head: Head, key: Key, backbone: Backbone, capacity: Capacity) -> Any:
  """The initial state of a head over the features of a backbone, for all classes of a sequence.

  Args:
    head: linear, cosine, ...
    key: that the method's `init` or `begin_task` got; used again for other things by the method.
    backbone: whose features it reads.
    capacity: of the sequence.
  """
  return head.init(jax.random.fold_in(key, _HEAD), backbone.width, capacity.classes)


def as_linear(head: Head, state: Any) -> LinearHead | None:
  """A head as other libraries read it; None where it is not linear."""
  return None if head.linear is None else head.linear(state)


def normalised(inputs: InputSpec, x: Array) -> Array:
  """A batch as the backbone expects it: images in its value range, token ids as they are.

  Raises:
    TypeError: for another dtype: what values mean is never guessed from them.
  """
  return inputs.normalised(x)


def raw(x: Inputs) -> Array:
  """The images or token ids of a batch, without further values per example."""
  return x.x if isinstance(x, Given) else x


def query_of(x: Inputs) -> Array | None:
  """The cached feature of the frozen backbone [B, D], or None."""
  return x.query if isinstance(x, Given) else None


def with_query(x: Inputs, query: Array) -> Given:
  """A batch together with the feature of the frozen backbone [B, D]."""
  return x._replace(query=query) if isinstance(x, Given) else Given(x, query)


def below_of(x: Inputs) -> Below | None:
  """What the lowest blocks of the frozen backbone make of a batch, or None."""
  return x.below if isinstance(x, Given) else None


def with_given(x: Inputs, **values: Any) -> Given:
  """A batch with further values per example, beside those that it has."""
  return (x if isinstance(x, Given) else Given(x))._replace(**values)


def task_of(x: Inputs) -> Array:
  """The task of each example [B] int32, -1 where it is not known."""
  if isinstance(x, Given) and x.task is not None:
    return x.task
  return jnp.full(raw(x).shape[0], -1, jnp.int32)


class Model(NamedTuple):
  """A backbone with a transform on it, as functions of the frozen weights."""

  init: Callable[[Key, Params], Delta]  # (key, frozen) -> delta
  features: Callable[..., Array]  # (frozen, delta, x, key=None) -> [B, D]
  # (frozen, delta, x, key=None, watch=None, rows=1) -> Features, with tokens and taps.
  run: Callable[..., Features]


def model(backbone: Backbone, peft: PeftTransform) -> Model:
  """Joins a backbone and a transform; by default computes only what the pooled feature reads.

  `run` also gives tokens (with `rows=None` all of them) and what `watch` reads from the sites, in
  `Features.taps`. Where a batch has a `Below`, blocks below it are not run again if neither the
  transform nor `watch` has a site in them.

  Raises:
    ValueError: if the transform finds no site in the backbone.
  """
  shape = jax.tree.structure(abstract_delta(backbone, peft))
  lowest = functools.cache(lambda: lowest_block(backbone, peft))

  def enters(below: Below, delta: Delta, watch: Watch | None) -> bool:
    """Whether the lower blocks are those of the frozen backbone alone."""
    if jax.tree.structure(delta) != shape or below.block > lowest():
      return False
    return watch is None or not asks_below(watch, backbone, below.block)

  def init(key, frozen):
    return peft.init(key, backbone.sites, frozen)

  def run(frozen, delta, x, key=None, *, watch: Watch | None = None, rows: int | None = 1):
    extra: dict[str, Any] = {} if watch is None else {'watch': watch}
    if (below := below_of(x)) is not None and enters(below, delta, watch):
      extra['below'] = below
    x = normalised(backbone.inputs, raw(x))
    return backbone.apply(frozen, x, delta, peft=peft, key=key, rows=rows, **extra)

  def features(frozen, delta, x, key=None):
    return run(frozen, delta, x, key).pooled

  return Model(init, features, run)


def abstract_delta(backbone: Backbone, peft: PeftTransform) -> Delta:
  """The shapes of a transform's delta on a backbone, at no cost.

  Raises:
    ValueError: if the transform finds no site in the backbone.
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(backbone.init, key)
  return jax.eval_shape(lambda k, p: peft.init(k, backbone.sites, p), key, params)


def frozen_features(backbone: Backbone, frozen: Params, x: Inputs) -> Array:
  """The pooled feature of the backbone alone [B, D]; taken from the cache where there is one."""
  if (query := query_of(x)) is not None:
    return query
  extra = {} if (below := below_of(x)) is None else {'below': below}
  images = normalised(backbone.inputs, raw(x))
  return jax.lax.stop_gradient(backbone.apply(frozen, images, rows=1, **extra).pooled)


def on_frozen_features(
  backbone: Backbone, answers: Callable[[Params, Any, Env, Array, Inputs], Array]
) -> Parts:
  """A `predict` that reads the feature of the backbone alone, which is computed once per example.

  Args:
    backbone: frozen.
    answers: `(params, memory, env, features, x) -> answers`, of features [B, D].
  """
  return Parts(
    weights=lambda params, memory, env, slot: {},
    part=lambda frozen, weights, x: frozen_features(backbone, frozen, x),
    combine=lambda params, memory, env, parts, x: answers(params, memory, env, parts[0], x),
  )


def on_features(
  net: Model, entry: str, answers: Callable[[Params, Any, Env, Array, Inputs], Array]
) -> Parts:
  """A `predict` that reads the feature under one delta, which is computed again where that changed.

  Args:
    net: the backbone with the delta's transform.
    entry: of `params`, the delta.
    answers: as in `on_frozen_features`.
  """
  return Parts(
    weights=lambda params, memory, env, slot: params[entry],
    part=lambda frozen, delta, x: net.features(frozen, delta, x),
    combine=lambda params, memory, env, parts, x: answers(params, memory, env, parts[0], x),
  )


def mean_of_valid(values: Array, valid: Array) -> Array:
  """The mean of [B] values over valid examples; 0 if there are none."""
  return jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)


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
  """Completes a method from its forward pass: the problem's loss plus its own regulariser.

  Args:
    name: for reports.
    backbone: the frozen model.
    capacity: of its state.
    init: as in `ContinualMethod`.
    forward: as in `ContinualMethod`.
    masked: train with the softmax over the task's own classes only (the
      field's masked or local cross-entropy), else over all classes seen.
    **hooks: any other field of `ContinualMethod`.
  """

  problem = capacity.problem

  def checked(params, memory, env: Env, x, key):
    return check_output(name, forward(params, memory, env, x, key))

  def loss(params, memory, env: Env, batch: Batch, key):
    out = checked(params, memory, env, batch.x, key)
    allowed = env.task.classes if masked else env.task.seen
    allowed = allowed if env.among is None else allowed & env.among
    losses = problem.losses(out.logits, batch.y, allowed) + out.aux_loss
    return mean_of_valid(losses, batch.valid), out

  def predict(params, memory, env: Env, x):
    logits = checked(params, memory, env, x, None).logits
    return only(env.task.seen, logits) if problem.classes else logits

  fields = {'loss': loss, 'predict': predict, **hooks}
  return ContinualMethod(name, backbone, capacity, init, checked, **fields)


def check_output(name: str, out: Any) -> Output:
  """Checks that a forward pass gave an `Output` with one regulariser value per example; returns it.

  Raises:
    TypeError: if it is no `Output`.
    ValueError: for a regulariser that is not [B].
  """
  if not isinstance(out, Output):
    raise TypeError(
      f'{name}: forward must return Output(logits, aux_loss, features), got {type(out).__name__}'
    )
  rows = jnp.shape(out.logits)[:1]
  if jnp.shape(out.aux_loss) != rows:
    raise ValueError(
      f'{name}: aux_loss must be one number per example {list(rows)}, got shape '
      f'{list(jnp.shape(out.aux_loss))}; use jnp.broadcast_to(value, {rows}) for one that all share'
    )
  return out


def held_of(inner: ContinualMethod, params: Params) -> Params:
  """The parameters that a wrapper may tie to old values: trained, and not reset at each task."""
  lasting = {name: tree for name, tree in params.items() if name not in inner.renewed}
  return split_kept(lasting)[0]
