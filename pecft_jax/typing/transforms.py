"""Transforms, which change a backbone at its sites, or its weights.

Axis letters: B batch, T tokens (tasks when it leads a bank), D width, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pecft_jax.settings import record_line
from pecft_jax.typing.arrays import Array, Delta, Key, Params
from pecft_jax.typing.sites import Watch


class Kept(NamedTuple):
  """Arrays in a delta that are carried and not trained: masks, indices, frozen factors.

  No gradient is taken of them and no optimizer sees them; they may have any dtype.
  """

  value: Any


class Calibration(NamedTuple):
  """Statistics of one pass over a task's data before training, and how a delta uses them.

  Gradients are those of the problem's loss among the task's own classes, without dropout and
  without what methods and wrappers add to it, at the parameters at the start of the task. Columns
  of a head that are zero, as those of new classes are, would give none: for this pass they are
  random, normal with deviation 1 / sqrt(D). A batch costs a forward and a backward pass, and while
  it runs the gradients of the named weights, in float32, besides the statistics.

  Attributes:
    watch: what is wanted of the sites, as in `Backbone.apply`; the delta is in place. None:
      nothing, and no forward pass is made for it.
    empty: `(delta, weights) -> statistics`, at their start: a pytree of arrays. `weights` has shape
      and dtype of each weight that `gradients` names.
    add: `(statistics, taps, valid) -> statistics`, one batch more. `taps` is
      what `watch` gave by `kind:path`, and the gradient of the mean loss over the valid rows with
      respect to each weight by `gradient:name`; `valid` [B] bool says which rows count.
    finish: `(delta, statistics) -> delta`, of the same shapes.
    gradients: `(delta) -> names` of frozen weights: leaves, as in `block_3/attn/q/bias`, or sites,
      as in `block_3/attn/q`, whose main weight is meant. Names are the same however layers and
      projections are stored. None: no gradients.
    each: whether `add` gets examples one by one (B = 1), as per-example gradients need: B backward
      passes of one example in the place of one of B. On a mesh each is computed on all devices of
      the axis `data`.
    examples: how many of the task's, drawn at random, the same for all seeds; None for all of
      them, in order.
  """

  watch: Watch | None
  empty: Callable[[Delta, Mapping[str, Any]], Any]
  add: Callable[[Any, dict[str, Any], Array], Any]
  finish: Callable[[Delta, Any], Delta]
  gradients: Callable[[Delta], Sequence[str]] | None = None
  each: bool = False
  examples: int | None = None


class PeftTransform(NamedTuple):
  """A parameter-efficient fine-tuning method as pure functions; those it does not need are None.

  Attributes:
    init: `(key, sites, params) -> delta`. Consumes the key. `sites` is a
      sequence of `SiteSpec`; raises ValueError where a pattern matches none.
    intercept: `(delta, site, next_fn, *args) -> out`. Pure; calls `next_fn`
      at most once. Passes through at sites that the delta does not name.
    replace: `(delta, params) -> params`. Puts trained weights in place of
      frozen ones before the forward pass (selective methods).
    merge: `(delta, params) -> params`, the weight-space form, equal to
      `replace` and `intercept` together; None where there is none (prompts,
      adapters with a non-linearity).
    with_dropout: `(delta, key) -> delta`, for one forward pass in training: what
      `replace` and `intercept` need for dropout, or other noise. Consumes the key.
    update: `(delta, path, w) -> dW`, the change of the weight `w` [d_in, d_out]
      of the linear site at `path`, where the transform is a sum W + dW.
    after: `(delta, grads, progress) -> delta`, after each update of a task
      (AdaLoRA's budget). `grads` is a tree like the delta with None in the place
      of what is `Kept`; `progress` [] in [0, 1] is that of the task.
    penalty: `(delta) -> []`, added to the training loss.
    calibrate: a pass over the data before a fresh delta is trained (EVA, FISH).
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

  def __repr__(self) -> str:
    """The settings in a line."""
    return record_line(self)
