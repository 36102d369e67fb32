"""The records that the library is made of, each with its contract.

Axis letters: B batch, T tokens (tasks when it leads a bank), D width, C classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
Key = jax.Array
Params = Any  # A pytree of arrays: nested dicts with string keys.
Delta = Any  # The trainable pytree of a PEFT transform.
# What one batch feeds the model: images uint8 [B, H, W, C], token ids int32 [B, T], or a `Cached`.
Inputs = Any


class Site(NamedTuple):
  """A named insertion point of a backbone.

  Attributes:
    kind: one of `SITE_KINDS`.
    path: path of the site's weights in the backbone's parameters, as in
      `block_3/attn/q`; for sites without weights, of the module around them.
    lead: for `tokens` sites, how many tokens stand before inserted ones (the
      class token of a ViT: 1). With 0, what is read stands behind them: where
      a backbone gives back fewer tokens than it got, these are the last ones.
    stack: name of the stack of blocks that it belongs to; `''` in a backbone
      with one stack.
    layer: number of its block in that stack, counted from 0; None outside the
      blocks.
  """

  kind: str
  path: str
  lead: int = 0
  stack: str = ''
  layer: int | None = None


SITE_KINDS = ('linear', 'norm', 'attend', 'sublayer', 'tokens')


class SiteSpec(NamedTuple):
  """A site with the shapes that pass through it: what `PeftTransform.init` reads."""

  site: Site
  args: tuple[Any, ...]  # jax.ShapeDtypeStruct of each argument, None where absent.
  out: Any  # jax.ShapeDtypeStruct of the result.


def _pass_through(delta: Delta, site: Site, next_fn: Callable[..., Array], *args: Any) -> Array:
  del delta, site
  return next_fn(*args)


def _same_params(delta: Delta, params: Params) -> Params:
  del delta
  return params


def _same_delta(delta: Delta, key: Key) -> Delta:
  del key
  return delta


class PeftTransform(NamedTuple):
  """A parameter-efficient fine-tuning method as pure functions.

  Attributes:
    init: `(key, sites, params) -> delta`. Consumes the key. `sites` is a
      sequence of `SiteSpec`; raises ValueError where a pattern matches none.
    intercept: `(delta, site, next_fn, *args) -> out`. Pure; calls `next_fn`
      at most once. Passes through at sites that the delta does not name.
    weights: `(delta, params) -> params`. Puts trained weights in the place of
      frozen ones before the forward pass; the identity but for selective methods.
    merge: `(delta, params) -> params`, the weight-space form, equal to
      `weights` and `intercept` together; None where there is none (prompts,
      adapters with a non-linearity).
    noise: `(delta, key) -> delta`, for one forward pass in training: what
      `intercept` needs for dropout. Consumes the key.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  init: Callable[[Key, Any, Params], Delta]
  intercept: Callable[..., Array] = _pass_through
  weights: Callable[[Delta, Params], Params] = _same_params
  merge: Callable[[Delta, Params], Params] | None = None
  noise: Callable[[Delta, Key], Delta] = _same_delta
  settings: Mapping[str, Any] | None = None


class Features(NamedTuple):
  """What a backbone computes."""

  pooled: Array  # [B, D], what a head reads.
  tokens: Array  # [B, T, D] after the final norm; just those computed where `rows` was given.
  taps: dict[str, Any]  # What `watch` took from sites, by `kind:path`.


class InputSpec(NamedTuple):
  """What a backbone eats: the shape of one example, and what its values mean.

  Images arrive as uint8 and are normalised on the device to
  `(x / 255 - mean) / std`, with one mean and std per channel. Token ids arrive
  as int32 and stay what they are; `pad` fills up texts that are shorter.
  """

  shape: tuple[int, ...]  # [H, W, channels] of images, [T] of token ids.
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  pad: int | None = None  # None where the inputs are images.

  @property
  def what(self) -> str:
    """The inputs in words."""
    return 'images' if self.pad is None else 'token ids'

  @property
  def dtype(self) -> np.dtype[Any]:
    """In which examples arrive."""
    return np.dtype(np.uint8 if self.pad is None else np.int32)


class Backbone(NamedTuple):
  """A pre-trained model as pure functions.

  Attributes:
    name: for reports and error messages.
    init: `(key) -> params`, freshly initialised. Consumes the key.
    apply: `(params, inputs, delta=None, *, peft=None, key=None, rows=None, watch=None)
      -> Features`.
      `inputs` are normalised floats, or token ids. The key is for the
      transform's dropout; None means deterministic. With `rows`, the last block
      computes just that many tokens, and `Features.tokens` holds those: the
      leading ones of a ViT (1: the class token); of a decoder, which takes
      `rows=1` only, the last real token of each text. With `watch`, a function
      `(site, args, out) -> pytree or None`, `Features.taps` holds what it
      returns for the arguments and the output (a transform's change included) of
      each site, under `kind:path`: `linear:block_3/attn/k`. What it does not ask
      for costs nothing. It is called while the pass is traced, and may be
      called more than once for a site.
    sites: every insertion point, with its shapes for a batch of one.
    inputs: the input specification.
    width: D of the pooled feature.
    depth: number of blocks.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  name: str
  init: Callable[[Key], Params]
  apply: Callable[..., Features]
  sites: tuple[SiteSpec, ...]
  inputs: InputSpec
  width: int
  depth: int
  settings: Mapping[str, Any] | None = None


class Pretrained(NamedTuple):
  """A backbone with its weights.

  Attributes:
    backbone: the model.
    params: its weights.
    head: the classifier that came with the weights; None where there is none.
    identity: what the record of a run says of the weights, as JSON, such as
      `backbone_sha256`; a run computes the digest where it is missing.
  """

  backbone: Backbone
  params: Params
  head: Params | None = None
  identity: Mapping[str, Any] = {}


class Task(NamedTuple):
  """The task at hand, as arrays, so that a new task cannot recompile anything."""

  index: Array  # [] int32, counted from 0.
  classes: Array  # [C] bool, the classes of this task.
  seen: Array  # [C] bool, those of this task and all before it.
  past: Array  # [C] bool, those of the tasks before it.
  start: Array  # [] int32, training steps taken before this task.
  steps: Array  # [] int32, training steps planned for this task (at least 1).


class Env(NamedTuple):
  """What a method may read besides its own state."""

  frozen: Params  # The backbone's weights; never differentiated, always an argument.
  task: Task


class Batch(NamedTuple):
  """One batch of constant shape; rows beyond the data are marked invalid."""

  x: Inputs  # uint8 [B, H, W, C] or int32 [B, T], or a `Cached` around it.
  y: Array  # [B] int32, position of the class in the class order.
  valid: Array  # [B] bool
  index: Array  # [B] int32, row of the example in its split.


class Cached(NamedTuple):
  """Inputs together with what the frozen backbone makes of them."""

  x: Array  # uint8 [B, H, W, C] or int32 [B, T]
  query: Array  # [B, D]


class Output(NamedTuple):
  """What a method's forward pass computes in training."""

  logits: Array  # [B, C]
  aux_loss: Array  # [B] the method's own regulariser per example, already weighted.
  features: Array  # [B, D], what the head read.


class Adapted(NamedTuple):
  """What is needed to use an adapted backbone without the method that learnt it."""

  peft: PeftTransform
  delta: Delta
  head: Any  # Of `kernel` [D, C] and `bias` [C]; None where features are classified otherwise.


class Capacity(NamedTuple):
  """How much a sequence can hold: the static sizes of all continual state."""

  tasks: int
  classes: int


def _same(params: Params, memory: Any, *_: Any) -> tuple[Params, Any]:
  return params, memory


def keep(params: Params, memory: Any, *_: Any) -> Any:
  """The hook that does nothing; the trainer skips passes whose hook is this one."""
  del params
  return memory


def _same_grads(grads: Params, memory: Any, env: Env) -> Params:
  del memory, env
  return grads


class ContinualMethod(NamedTuple):
  """A continual-learning method as pure functions over (params, memory, env).

  `params` is exactly what the optimizer sees now; `memory` is every other
  array that is carried: past slots, buffers, statistics. No leaf is in both.
  All shapes are constant over the whole sequence. Keys are consumed; `None`
  means deterministic.

  Attributes:
    name: for reports.
    capacity: the static sizes of its state.
    inputs: what its backbone eats.
    init: `(key, frozen) -> (params, memory)`.
    forward: `(params, memory, env, x, key | None) -> Output`, in training mode.
    loss: `(params, memory, env, batch, key) -> (loss [], Output)`.
    predict: `(params, memory, env, x) -> logits [B, C]`, unseen classes -inf.
    begin_task: `(params, memory, env, key) -> (params, memory)`.
    prepare: `(params, memory, env, batch) -> memory`, one pass over the new
      data before training.
    observe: `(params, memory, env, batch, out, key) -> memory`, after each update.
    consolidate: `(params, memory, env, batch) -> memory`, one pass after training.
    end_task: `(params, memory, env) -> (params, memory)`.
    project: `(grads, memory, env) -> grads`.
    query: `(frozen, x) -> [B, D]`, what may be computed once per example and
      handed to `forward` as a `Cached`; None where there is nothing to cache.
    trains: whether task `t` has a training phase, as `(t) -> bool` (SimpleCIL:
      never; RanPAC: the first task only).
    cumulative: whether the method trains on the data of all tasks so far
      (joint training, the upper bound); continual methods do not.
    passes: forward passes of the backbone per prediction, as `(tasks) -> float`.
    adapted: `(params, memory, env) -> Adapted`, after `end_task`, outside of
      jit; None where no single delta does what `predict` needs.
    renewed: the top-level entries of `params` that start afresh with each
      task; wrappers that tie parameters to old values leave them out.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  name: str
  capacity: Capacity
  inputs: InputSpec
  init: Callable[[Key, Params], tuple[Params, Any]]
  forward: Callable[..., Output]
  loss: Callable[..., tuple[Array, Output]]
  predict: Callable[..., Array]
  begin_task: Callable[..., tuple[Params, Any]] = _same
  prepare: Callable[..., Any] = keep
  observe: Callable[..., Any] = keep
  consolidate: Callable[..., Any] = keep
  end_task: Callable[..., tuple[Params, Any]] = _same
  project: Callable[[Params, Any, Env], Params] = _same_grads
  query: Callable[[Params, Array], Array] | None = None
  trains: Callable[[int], bool] = lambda task: True
  cumulative: bool = False
  passes: Callable[[int], float] = lambda tasks: 1.0
  adapted: Callable[[Params, Any, Env], Adapted] | None = None
  renewed: tuple[str, ...] = ()
  settings: Mapping[str, Any] | None = None


class TrainState(NamedTuple):
  """The whole of a run that changes: one checkpointable pytree."""

  params: Params
  memory: Any
  opt_state: Any
  task: Task
  step: Array  # [] int32, updates over the whole sequence.
  key: Key
