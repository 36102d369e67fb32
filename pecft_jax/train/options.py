"""How a run uses its machine and its work directory; none of it changes results."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pecft_jax.arguments import at_least, check_arguments
from pecft_jax.devices.sharding import Layout
from pecft_jax.workdir.branch import Branch
from pecft_jax.workdir.record import Writer

if TYPE_CHECKING:
  from rich.console import Console


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
  """Options of `run` and `run_seeds`.

  Attributes:
    layout: mesh and sharding rules. By default the first device alone, or, in
      a job of several processes, all devices along `data`. A run may be
      resumed on another one.
    save_every: seconds between checkpoints; there is one after each task, too.
    keep_tasks: keep the checkpoint after each task, to branch from; otherwise
      the two newest checkpoints stay.
    branch: start from another run's checkpoint after a task.
    console: for progress; standard output by default.
    writers: take rows of metrics beside the files; for a single seed.
    config: settings that must be the same on resuming, as JSON.
    command: how the run was started, which need not be the same on resuming;
      kept with the configuration.
    files: digests by name of the files that made the experiment, as
      `pecft_jax.sources.files_beside` finds them: on resuming, changed ones are refused.
    parts_memory: GiB of each process's memory for parts of answers that do not change from one
      evaluation to the next, of methods with `Parts`; 0 for none. What does not fit is computed
      again.
    parts_disk: the same in the work directory, so that a resumed run has them. They are removed at
      the end of the run, and may be at any time. A job of several processes uses memory alone.
    accept_changes: go on although a file was changed; recorded in config.json.
    tokens_kept: most GiB of tokens below the lowest trained block that are kept, so that the
      frozen blocks there are computed once per example; None for a quarter of this machine's
      memory, 0 for none.
    tokens_in: folder for files that hold them; None to hold them in memory.

  Example:
    >>> import dataclasses
    >>> often = RunOptions(save_every=10, keep_tasks=True)
    >>> dataclasses.replace(often, config={'rate': 1e-3}).save_every
    10
  """

  layout: Layout | None = None
  save_every: float = 60.0
  keep_tasks: bool = False
  branch: Branch | None = None
  console: 'Console | None' = None
  writers: Sequence[Writer] = ()
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  command: Mapping[str, Any] | None = None
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  accept_changes: bool = False
  parts_memory: float = 1.0
  parts_disk: float = 4.0
  tokens_kept: float | None = None
  tokens_in: pathlib.Path | None = None

  def __post_init__(self) -> None:
    """Raises ValueError for seconds or sizes that are not a number, or negative."""
    names = ('save_every', 'parts_memory', 'parts_disk', 'tokens_kept')
    given = {name: getattr(self, name) for name in names}
    check_arguments(RunOptions, {**given, 'keep_tasks': self.keep_tasks})
    at_least(0, **{name: number for name, number in given.items() if number is not None})
