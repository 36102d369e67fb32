"""The position of a run: all that resuming needs besides the train state, as JSON."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Findings:
  """Results so far, of one seed.

  Attributes:
    counts: [J, 3] score, score with the task known, and total, of the evaluation under way, for
      the J test sets of all tasks and probes.
    accuracy: rows of the accuracy matrix so far, None above the diagonal.
    aware: the same, with the task known at test time.
    losses: of the steps since the last row of the log, with right and total
      examples.
    rows: of the log.
    start: accuracies before the first task, where they are asked for.
    probes: rows of accuracies on the probes, after each task.
    anytime: evaluations within tasks: `task`, `step`, and `evaluated`.
    hits: [2, C] right answers by class, of the evaluation under way: among all classes seen, and
      with the task known, on the test sets of the tasks seen; empty where answers are no classes.
    by_class: the same of the last evaluation after a task.
  """

  counts: list[list[float]] = dataclasses.field(default_factory=list)
  accuracy: list[list[float | None]] = dataclasses.field(default_factory=list)
  aware: list[list[float | None]] = dataclasses.field(default_factory=list)
  losses: list[list[float]] = dataclasses.field(default_factory=list)
  rows: int = 0
  start: list[float] = dataclasses.field(default_factory=list)
  probes: list[list[float]] = dataclasses.field(default_factory=list)
  anytime: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  hits: list[list[int]] = dataclasses.field(default_factory=list)
  by_class: list[list[int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Position:
  """The place in a sequence, and the results so far.

  Attributes:
    task: the current one, from 0; the number of tasks when all is done.
    phase: 'start' (before the first task), one of the method's plan, or 'evaluate'.
    batch: batches done within the phase.
    inside: batches done of an evaluation within training; None outside of one.
    tick: batches and boundaries done in the whole run; numbers checkpoints.
    data: state of the training data's iterators, which seeds share.
    seconds: spent on each task so far.
    images: training examples seen, of all seeds.
    training_seconds: spent in the training phases.
    compile_seconds: spent on tracing and compiling, which are no part of the other seconds.
    compilations: of each jitted function, the most in one process.
    peak_bytes: largest resident size of a process, as of the last checkpoint.
    seeds: the findings of each seed.
    logs: of steps, still on their devices; no part of the JSON.
    sums: of the evaluation under way, likewise; None where there are none.
  """

  task: int = 0
  phase: str = 'start'
  batch: int = 0
  inside: int | None = None
  tick: int = 0
  data: Any = None
  seconds: list[float] = dataclasses.field(default_factory=list)
  images: int = 0
  training_seconds: float = 0.0
  compile_seconds: float = 0.0
  compilations: dict[str, int] = dataclasses.field(default_factory=dict)
  peak_bytes: int = 0
  seeds: list[Findings] = dataclasses.field(default_factory=lambda: [Findings()])
  logs: list[Any] = dataclasses.field(default_factory=list)
  sums: Any = None

  def evaluated(self) -> int:
    """The number of tasks after which all were evaluated."""
    return len(self.seeds[0].accuracy)

  def at_boundary(self) -> bool:
    """Whether a task has just been evaluated, and its row of accuracies is there."""
    return self.evaluated() == self.task + 1

  def to_json(self) -> dict[str, Any]:
    """A dict of JSON types; call it only after everything was fetched from the devices."""
    assert not self.logs and self.sums is None
    value = dataclasses.asdict(self)
    del value['logs'], value['sums']
    return value

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> 'Position':
    """The inverse of `to_json`."""
    return cls(**{**value, 'seeds': [Findings(**each) for each in value['seeds']]})
