"""Progress of a run on the terminal, with the time left for the whole sequence."""

import time
from typing import TYPE_CHECKING, Any

from pecft_jax.continual.plan import Calibrating, has_phase, phase_names, plan_of
from pecft_jax.data import Split, steps_for
from pecft_jax.train.experiment import Experiment
from pecft_jax.train.schedule import fit_steps, gathered_split, training_split, training_steps
from pecft_jax.typing import ContinualMethod, Fit, Gather
from pecft_jax.workdir.position import Position

if TYPE_CHECKING:
  from rich.console import Console

# Rough cost of a batch, relative to one forward pass of as many examples.
_TRAIN_COST = 3.0
_QUIET_SECONDS = 10.0  # Between lines, where there is no terminal to redraw.


def phase_costs(experiment: Experiment, method: ContinualMethod) -> list[dict[str, float]]:
  """Estimated cost of each phase of each task, in forward passes of one example."""
  training, scenario = experiment.training, experiment.scenario
  out = []
  for t in range(len(scenario.tasks)):
    n = len(training_split(experiment, method, t).rows)
    tests = sum(len(split.rows) for split in _evaluated(experiment, t))
    steps = training_steps(experiment, method, t)
    costs = {
      'prepare': n,
      'train': steps * training.batch_size * _TRAIN_COST,
      'consolidate': n * method.passes(t + 1),
    }
    found = {}
    for step in plan_of(method):
      name = step if isinstance(step, str) else step.name
      if not has_phase(method, step, t):
        continue
      match step:
        case Gather():
          found[name] = float(n)
        case Calibrating():
          found[name] = len(gathered_split(experiment, method, step, t).rows) * _TRAIN_COST
        case Fit(steps=None):
          found[name] = n * step.epochs * _TRAIN_COST
        case _:
          found[name] = costs.get(name, 0.0)
    out.append({**found, 'evaluate': tests * method.passes(t + 1)})
  return out


def phase_batches(experiment: Experiment, method: ContinualMethod, t: int) -> dict[str, int]:
  """Number of batches of each phase of a task."""
  training = experiment.training
  size = training.eval_batch_size
  gathered = steps_for(len(training_split(experiment, method, t).rows), size, 1)
  found = {
    'prepare': gathered,
    'train': training_steps(experiment, method, t),
    'consolidate': gathered,
    'evaluate': sum(steps_for(len(s.rows), size, 1) for s in _evaluated(experiment, t)),
  }
  for step in plan_of(method):
    if isinstance(step, Fit):
      found[step.name] = fit_steps(experiment, method, step, t)
    elif isinstance(step, Gather | Calibrating):
      split = gathered_split(experiment, method, step, t)
      found[step.name] = steps_for(len(split.rows), training.eval_batch_size, 1)
  return found


def _evaluated(experiment: Experiment, t: int) -> list[Split]:
  """The test sets after task t."""
  scenario = experiment.scenario
  last = len(scenario.tasks) if experiment.training.evaluate == 'all' else t + 1
  tests = [task.test for task in scenario.tasks[:last]]
  return [*tests, *(probe.split for probe in scenario.probes)]


class Reporter:
  """Shows task, epoch, step, loss and time left: a bar, or lines where there is no terminal."""

  def __init__(
    self, experiment: Experiment, method: ContinualMethod, name: str, console: 'Console'
  ):
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    self._experiment, self._method, self._name = experiment, method, name
    self._console = console
    self._order = ('start', *phase_names(method), 'evaluate')
    self._costs = phase_costs(experiment, method)
    tasks = range(len(experiment.scenario.tasks))
    self._batches = [phase_batches(experiment, method, t) for t in tasks]
    self._total = sum(sum(costs.values()) for costs in self._costs) or 1.0
    self._start: tuple[float, float] | None = None
    self._loss: float | None = None
    self._said = time.monotonic()
    self._bar = Progress(
      SpinnerColumn(),
      TextColumn('[bold]{task.fields[name]}'),
      BarColumn(bar_width=24),
      TextColumn('{task.percentage:3.0f} %'),
      TextColumn('{task.fields[place]}'),
      console=console,
      transient=True,
      disable=not console.is_terminal,
    )
    self._row = self._bar.add_task('', total=1.0, name=name, place='compiling')

  def __enter__(self) -> 'Reporter':
    self._bar.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._bar.stop()

  def __call__(self, position: Position, loss: float | None) -> None:
    """Takes the position after a batch, and the mean loss where there is a new one."""
    self._loss = loss if loss is not None else self._loss
    done = self._done(position)
    now = time.monotonic()
    if self._start is None:
      self._start = (now, done)
    place = self._place(position) + self._left(now, done)
    self._bar.update(self._row, completed=done, place=place)
    if not self._console.is_terminal and now - self._said > _QUIET_SECONDS:
      self._said = now
      self._console.print(f'{self._name}: {done:4.0%} {place}', highlight=False)

  def _done(self, position: Position) -> float:
    past = sum(sum(costs.values()) for costs in self._costs[: position.task])
    costs = self._costs[position.task]
    past += sum(costs.get(phase, 0.0) for phase in self._order[: self._order.index(position.phase)])
    batches = self._batches[position.task].get(position.phase, 1)
    share = position.batch / max(1, batches)
    return (past + share * costs.get(position.phase, 0.0)) / self._total

  def _place(self, position: Position) -> str:
    tasks = len(self._experiment.scenario.tasks)
    text = f'task {position.task + 1}/{tasks}'
    if position.phase != 'train':
      return f'{text} · {position.phase}'
    steps = self._batches[position.task]['train']
    epochs = self._experiment.training.epochs
    epoch = min(epochs, position.batch * epochs // max(1, steps) + 1)
    text += f' · epoch {epoch}/{epochs} · step {position.batch}/{steps}'
    return text if self._loss is None else f'{text} · loss {self._loss:.3f}'

  def _left(self, now: float, done: float) -> str:
    assert self._start is not None
    elapsed, gained = now - self._start[0], done - self._start[1]
    if gained <= 0:
      return ''
    seconds = round(elapsed * (1 - done) / gained)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    clock = f'{hours}:{minutes:02}:{seconds % 60:02}' if hours else f'{minutes}:{seconds % 60:02}'
    return f' · {clock} left'
