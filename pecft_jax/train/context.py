"""The context of the loop over a sequence."""

import dataclasses
import time
from collections.abc import Callable, Sequence

from pecft_jax.train.experiment import Experiment
from pecft_jax.train.kept import Kept
from pecft_jax.train.step import Steps
from pecft_jax.train.tokens import KeptTokens
from pecft_jax.typing import ContinualMethod, Params, TrainState
from pecft_jax.workdir.position import Position
from pecft_jax.workdir.record import Record, Unwritten


class NonFiniteLoss(ArithmeticError):
  """Training diverged: a loss or a parameter is not a number; the last good checkpoint stays."""


@dataclasses.dataclass(frozen=True)
class Loop:
  """The context of a run; the state and the position are passed separately.

  Attributes:
    experiments: that are run side by side, one or several; they differ in their seeds and in the
      order of their data.
    method: that is run.
    steps: its compiled functions.
    frozen: the backbone's weights, on their devices.
    part: index and count of the parts of a batch, of which this process has one.
    records: take rows, one for each experiment.
    after_batch: called with state and position when both are consistent: the
      place for checkpoints and stops.
    tell: called with the position, the latest loss, and whether all results so far have arrived
      from the devices, for progress bars.
    kept: parts of answers from evaluations before; None keeps none.
    tokens: tokens below the lowest trained block, where some are kept.
    clock: seconds from any point in time, without those spent on compiling.
  """

  experiments: tuple[Experiment, ...]
  method: ContinualMethod
  steps: Steps
  frozen: Params
  part: tuple[int, int]
  records: tuple[Record | Unwritten, ...]
  after_batch: Callable[[TrainState, Position], None]
  tell: Callable[[Position, float | None, bool], None]
  kept: Kept | None = None
  tokens: KeptTokens | None = None
  clock: Callable[[], float] = time.perf_counter

  @property
  def experiment(self) -> Experiment:
    """The first of them: what they have in common."""
    return self.experiments[0]

  @property
  def data(self) -> tuple[Experiment, ...]:
    """Those with data of their own: the first alone, where all have the same."""
    return self.experiments if own_data(self.experiments) else self.experiments[:1]


def own_data(experiments: Sequence[Experiment]) -> bool:
  """Whether experiments side by side have different data."""
  return any(each.scenario is not experiments[0].scenario for each in experiments)
