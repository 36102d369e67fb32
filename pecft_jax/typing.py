"""The records that the library is made of, each with its contract.

Axis letters: B batch, T tokens (tasks when it leads a bank), D width, C classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.problems import Problem, classification
from pecft_jax.recipes import Recipe

Array = jax.Array
Key = jax.Array
Params = Any  # A pytree of arrays: nested dicts with string keys.
Delta = Any  # The trainable pytree of a PEFT transform.
# What one batch feeds the model: images uint8 [B, H, W, C], token ids int32 [B, T], or a `Given`.
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


# (site, args, out) -> pytree of what is wanted of a site, or None; see `Backbone.apply`.
Watch = Callable[[Site, tuple[Any, ...], Array], Any]


class SiteSpec(NamedTuple):
  """A site with the shapes that pass through it: what `PeftTransform.init` reads."""

  site: Site
  args: tuple[Any, ...]  # jax.ShapeDtypeStruct of each argument, None where absent.
  out: Any  # jax.ShapeDtypeStruct of the result.


class Kept(NamedTuple):
  """Arrays in a delta that are carried and not trained: masks, indices, frozen factors.

  No gradient is taken of them and no optimizer sees them; they may have any dtype.
  """

  value: Any


class Calibration(NamedTuple):
  """Statistics of one pass over a task's data before training, and what a delta makes of them.

  Attributes:
    watch: what is wanted of the sites, as in `Backbone.apply`; the delta is in place.
    empty: `(delta) -> statistics`, at their start: a pytree of arrays.
    add: `(statistics, taps, valid) -> statistics`, one batch more. `taps` is
      what `watch` gave by `kind:path`, `valid` [B] bool says which rows count.
    finish: `(delta, statistics) -> delta`, of the same shapes.
  """

  watch: Watch
  empty: Callable[[Delta], Any]
  add: Callable[[Any, dict[str, Any], Array], Any]
  finish: Callable[[Delta, Any], Delta]


class PeftTransform(NamedTuple):
  """A parameter-efficient fine-tuning method as pure functions; absent ones are None.

  Attributes:
    init: `(key, sites, params) -> delta`. Consumes the key. `sites` is a
      sequence of `SiteSpec`; raises ValueError where a pattern matches none.
    intercept: `(delta, site, next_fn, *args) -> out`. Pure; calls `next_fn`
      at most once. Passes through at sites that the delta does not name.
    replace: `(delta, params) -> params`. Puts trained weights in the place of
      frozen ones before the forward pass (selective methods).
    merge: `(delta, params) -> params`, the weight-space form, equal to
      `replace` and `intercept` together; None where there is none (prompts,
      adapters with a non-linearity).
    with_dropout: `(delta, key) -> delta`, for one forward pass in training: what
      `intercept` needs for dropout. Consumes the key.
    update: `(delta, path, w) -> dW`, the change of the weight `w` [d_in, d_out]
      of the linear site at `path`, where the transform is a sum W + dW.
    after: `(delta, grads, progress) -> delta`, after each update of a task
      (AdaLoRA's budget). `grads` is a tree like the delta with None in the place
      of what is `Kept`; `progress` [] in [0, 1] is that of the task.
    penalty: `(delta) -> []`, added to the training loss.
    calibrate: a pass over the data before a fresh delta is trained (EVA).
    selective: whether replacing weights is all that the transform does.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  init: Callable[[Key, Any, Params], Delta]
  intercept: Callable[..., Array] | None = None
  replace: Callable[[Delta, Params], Params] | None = None
  merge: Callable[[Delta, Params], Params] | None = None
  with_dropout: Callable[[Delta, Key], Delta] | None = None
  update: Callable[[Delta, str, Array], Array] | None = None
  after: Callable[[Delta, Delta, Array], Delta] | None = None
  penalty: Callable[[Delta], Array] | None = None
  calibrate: Calibration | None = None
  selective: bool = False
  settings: Mapping[str, Any] | None = None


class Features(NamedTuple):
  """What a backbone computes."""

  pooled: Array  # [B, D], what a head reads.
  tokens: Array  # [B, T, D] after the final norm; just those computed where `rows` was given.
  taps: dict[str, Any]  # What `watch` took from sites, by `kind:path`.


class InputSpec(Protocol):
  """What a backbone reads: the shape of one example, and what its values mean.

  `Images` and `TokenIds` of `pecft_jax.inputs` are such records; others are
  welcome.
  """

  @property
  def kind(self) -> str:
    """The kind of input, as others ask for it: 'image' or 'tokens', or one of your own."""
    ...

  @property
  def shape(self) -> tuple[int, ...]:
    """Of one example: [H, W, channels] of images, [T] of token ids."""
    ...

  @property
  def dtype(self) -> np.dtype[Any]:
    """In which examples arrive."""
    ...

  @property
  def what(self) -> str:
    """The inputs in words."""
    ...

  @property
  def values(self) -> str:
    """What the values mean, in words, for the record of a run."""
    ...

  @property
  def unit(self) -> str:
    """What throughput is counted in."""
    ...

  @property
  def units(self) -> int:
    """How many of them one example has."""
    ...

  @property
  def remedy(self) -> str:
    """What to do about examples of another shape, for error messages."""
    ...

  def normalised(self, x: Array) -> Array:
    """A batch of examples as `Backbone.apply` takes it.

    Raises:
      TypeError: for another dtype than the examples have.
    """
    ...


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
    depth: number of blocks, in all of its stacks.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
    family: name of the family that it is of, among `pecft_jax.backbones.FAMILIES`;
      empty for a model of your own.
  """

  name: str
  init: Callable[[Key], Params]
  apply: Callable[..., Features]
  sites: tuple[SiteSpec, ...]
  inputs: InputSpec
  width: int
  depth: int
  settings: Mapping[str, Any] | None = None
  family: str = ''


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
  home: Array  # [C] int32, the first task of each class; -1 for classes not seen yet.
  start: Array  # [] int32, training steps taken before this task.
  steps: Array  # [] int32, training steps planned for this task (at least 1).


class Env(NamedTuple):
  """What a method may read besides its own state."""

  frozen: Params  # The backbone's weights; never differentiated, always an argument.
  task: Task
  step: Array | int = 0  # [] int32, updates of this task so far.

  @property
  def progress(self) -> Array:
    """Share of the task's updates that are done: [] in [0, 1]."""
    return jnp.asarray(self.step / self.task.steps)


class Given(NamedTuple):
  """Inputs together with what is known of them."""

  x: Array  # uint8 [B, H, W, C] or int32 [B, T]
  query: Array | None = None  # [B, D], what the frozen backbone makes of each example.
  task: Array | None = None  # [B] int32, the task of each example; -1 where it is not known.


class Batch(NamedTuple):
  """One batch of constant shape; rows beyond the data are marked invalid."""

  x: Inputs  # uint8 [B, H, W, C] or int32 [B, T], or a `Given` around it.
  y: Array  # [B, ...], as the problem's target: of classification, the position of the class.
  valid: Array  # [B] bool
  index: Array  # [B] int32, row of the example in its split.
  # [B] int32, -1 where a row is of the task's own data, else the stored example that it is, see
  # `Joined`. None where a method joins none.
  slot: Array | None = None


class Update(NamedTuple):
  """One update, as `observe` sees it; what is not read costs nothing."""

  grads: Params  # After `project`; None in the place of what is `Kept`.
  before: Params  # The parameters that they were taken at.


class Output(NamedTuple):
  """What a method's forward pass computes in training."""

  logits: Array  # [B, C], or as the problem's answers.
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
  problem: Problem = classification


# --- hooks: what a method does, and when -----------------------------------------------------


class ForwardHook(Protocol):
  """The model in training mode, without the task's loss."""

  def __call__(self, params: Params, memory: Any, env: Env, x: Inputs, key: Any, /) -> Output:
    """Consumes the key; None means deterministic."""
    ...


class LossHook(Protocol):
  """What an update minimises."""

  def __call__(
    self, params: Params, memory: Any, env: Env, batch: Batch, key: Any, /
  ) -> tuple[Array, Output]:
    """Returns (loss [], output of the batch). Consumes the key."""
    ...


class PredictHook(Protocol):
  """Answers at test time."""

  def __call__(self, params: Params, memory: Any, env: Env, x: Inputs, /) -> Array:
    """Returns logits [B, C] with -inf for unseen classes, or the problem's answers."""
    ...


class StateHook(Protocol):
  """Between passes: a change of what is carried."""

  def __call__(self, params: Params, memory: Any, env: Env, key: Key, /) -> tuple[Params, Any]:
    """Returns (params, memory) of the same names, shapes and dtypes. Consumes the key."""
    ...


class EndHook(Protocol):
  """After the last pass over a task."""

  def __call__(self, params: Params, memory: Any, env: Env, /) -> tuple[Params, Any]:
    """Returns (params, memory) of the same names, shapes and dtypes."""
    ...


class GatherHook(Protocol):
  """One batch of a pass over the task's data, as they are and in order."""

  def __call__(self, params: Params, memory: Any, env: Env, batch: Batch, /) -> Any:
    """Returns memory; rows that are not valid must not count."""
    ...


class ProjectHook(Protocol):
  """Before each update."""

  def __call__(
    self, grads: Params, params: Params, memory: Any, env: Env, batch: Batch, key: Key, /
  ) -> Params:
    """Returns the gradients that the optimizer sees. Consumes the key."""
    ...


class ObserveHook(Protocol):
  """After each update."""

  def __call__(
    self, params: Params, memory: Any, env: Env, batch: Batch, out: Output, update: Update,
    key: Key, /,
  ) -> tuple[Params, Any]:  # fmt: skip
    """Returns what the next step starts from. Consumes the key."""
    ...


class FitLoss(Protocol):
  """The loss of a `Fit`."""

  def __call__(
    self, params: Params, memory: Any, env: Env, batch: Batch | None, key: Key, /
  ) -> Array:
    """Returns the loss []; `batch` is None where the fit draws from memory. Consumes the key."""
    ...


class Once(NamedTuple):
  """A phase of one call.

  Attributes:
    name: of the phase in checkpoints, logs and messages; its own in a plan.
    hook: what is called.
    after: the phase that it follows: 'begin', 'prepare', 'train', 'consolidate',
      or another of the method's own.
    when: whether task `t` has it, as `(t) -> bool`.
  """

  name: str
  hook: StateHook
  after: str
  when: Callable[[int], bool] = lambda task: True


class Gather(NamedTuple):
  """A phase that is one pass over the task's training data; fields as those of `Once`."""

  name: str
  hook: GatherHook
  after: str
  when: Callable[[int], bool] = lambda task: True


class Fit(NamedTuple):
  """A phase of updates, on the task's data or on what memory holds.

  Attributes:
    name: as of `Once`.
    loss: `(params, memory, env, batch, key) -> []`.
    after: as of `Once`.
    recipe: its optimizer, whose state starts afresh with each task.
    trains: the top-level entries of `params` that it updates.
    steps: updates in a task on what memory holds, as `(task) -> int`, of a `Task`
      of numpy arrays; None for `epochs` passes over the task's data.
    epochs: passes over the task's data, where `steps` is None.
    when: as of `Once`.
  """

  name: str
  loss: FitLoss
  after: str
  recipe: Recipe
  trains: tuple[str, ...]
  steps: Callable[[Task], int] | None = None
  epochs: int = 1
  when: Callable[[int], bool] = lambda task: True


Phase = Once | Gather | Fit


class Joined(NamedTuple):
  """Stored examples that training visits in each epoch beside the task's own.

  Attributes:
    count: `(task) -> int`, how many, of a `Task` of numpy arrays.
    read: `(memory, env, slot) -> (x, y)`, those of numbers 0..count - 1. The trainer
      puts them into their rows of each batch before any hook sees it; these rows
      have the index -1, and no view: augmentation is of the task's own data.
  """

  count: Callable[[Task], int]
  read: Callable[[Any, Env, Array], tuple[Array, Array]]


class ContinualMethod(NamedTuple):
  """A continual-learning method as pure functions over (params, memory, env).

  `params` is exactly what the optimizer sees now, but for what is `Kept`;
  `memory` is every other array that is carried: past slots, buffers,
  statistics. No leaf is in both. All shapes are constant over the whole
  sequence. Keys are consumed; `None` means deterministic. Hooks that are None
  are skipped and cost nothing.

  A task has the phases begin, prepare, train, consolidate and end, with the
  method's own `phases` between them; see `pecft_jax.continual.plan`.

  Attributes:
    name: for reports.
    backbone: the frozen model that it stands on.
    capacity: the static sizes of its state.
    init: `(key, frozen) -> (params, memory)`.
    forward: the model in training mode.
    loss: what an update minimises.
    predict: answers at test time.
    begin_task: called once when a task begins.
    prepare: one pass over the new data before training.
    project: changes gradients before each update.
    observe: called after each update.
    consolidate: one pass over the task's data after training.
    end_task: called once when a task ends.
    phases: further phases, in order.
    transforms: the entries of `params` that are deltas, with the transform of each:
      the trainer calls the transforms' `after`, `penalty` and `calibrate`.
    query: `(frozen, x) -> [B, D]`, what may be computed once per example and
      handed to `forward` as a `Given`; None where there is nothing to cache.
    trains: whether task `t` has a training phase, as `(t) -> bool` (SimpleCIL:
      never; RanPAC: the first task only).
    cumulative: whether the method trains on the data of all tasks so far
      (joint training, the upper bound); continual methods do not.
    joined: stored examples that each epoch visits beside the task's own; None: none.
    passes: forward passes of the backbone per prediction, as `(tasks) -> float`.
    adapted: `(params, memory, env) -> Adapted`, after `end_task`, outside of
      jit; None where no single delta does what `predict` needs.
    renewed: the top-level entries of `params` that start afresh with each
      task; wrappers that tie parameters to old values leave them out.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  name: str
  backbone: Backbone
  capacity: Capacity
  init: Callable[[Key, Params], tuple[Params, Any]]
  forward: ForwardHook
  loss: LossHook
  predict: PredictHook
  begin_task: StateHook | None = None
  prepare: GatherHook | None = None
  project: ProjectHook | None = None
  observe: ObserveHook | None = None
  consolidate: GatherHook | None = None
  end_task: EndHook | None = None
  phases: tuple[Phase, ...] = ()
  transforms: Mapping[str, PeftTransform] = {}
  query: Callable[[Params, Array], Array] | None = None
  trains: Callable[[int], bool] = lambda task: True
  cumulative: bool = False
  joined: Joined | None = None
  passes: Callable[[int], float] = lambda tasks: 1.0
  adapted: Callable[[Params, Any, Env], Adapted] | None = None
  renewed: tuple[str, ...] = ()
  settings: Mapping[str, Any] | None = None

  @property
  def inputs(self) -> InputSpec:
    """What the backbone reads."""
    return self.backbone.inputs


class TrainState(NamedTuple):
  """The whole of a run that changes: one checkpointable pytree."""

  params: Params
  memory: Any
  opt_state: Any
  task: Task
  step: Array  # [] int32, updates over the whole sequence.
  key: Key
  extra: Any = {}  # By phase: optimizer states of fits, statistics of calibrations.
