"""Heads, which classify features."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pecft_jax.settings import record_line
from pecft_jax.typing.arrays import Array, Key


class LinearHead(NamedTuple):
  """A linear classifier over all classes that the sequence can hold: h W + b."""

  AXES = {'kernel': (None, 'class'), 'bias': ('class',)}

  kernel: Array  # [D, C], zeros at init.
  bias: Array  # [C], zeros at init.


class Head(NamedTuple):
  """A classifier over features, as pure functions; its state is trained, except what is `Kept`.

  A state has room for all classes of the sequence from the start, so shapes are constant. The type
  of a state names the axis `class` in its `AXES`; what has it is a slot per class, the rest is
  shared by all (`pecft_jax.heads.with_slots`).

  Methods take a head as their argument `head`, put its state at `params['head']`, and have it as
  `ContinualMethod.head`, where wrappers that train heads again find it.

  Attributes:
    init: `(key, width, classes) -> state`. Consumes the key.
    logits: `(state, features [B, D]) -> [B, C]`.
    awake: `(key, state) -> state`: a state whose logits depend on the features, with random
      columns where these are zero. Calibrations take gradients of it before anything was trained.
      Consumes the key. None: every state is so.
    linear: `(state) -> LinearHead` with the same logits, as other libraries read; None where the
      logits are no linear function of the features.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  init: Callable[[Key, int, int], Any]
  logits: Callable[[Any, Array], Array]
  awake: Callable[[Key, Any], Any] | None = None
  linear: Callable[[Any], LinearHead] | None = None
  settings: Mapping[str, Any] | None = None

  def __repr__(self) -> str:
    """The settings in a line."""
    return record_line(self)
