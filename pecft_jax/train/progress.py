"""Progress of a run on the terminal or in a notebook, with the time left for the whole sequence."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pecft_jax.continual.plan import Calibrating, has_phase, phase_names, plan_of
from pecft_jax.data import steps_for
from pecft_jax.train.evaluation import new_batches, round_batches
from pecft_jax.train.experiment import Experiment
from pecft_jax.train.line import Shown, fitted, plain
from pecft_jax.train.pace import Pace
from pecft_jax.train.schedule import fit_steps, gathered_split, training_split, training_steps
from pecft_jax.typing import ContinualMethod, Fit, Gather, Parts
from pecft_jax.workdir.position import Position

if TYPE_CHECKING:
  from rich.console import Console

# Rough cost of a batch, relative to one forward pass of as many examples.
_TRAIN_COST = 3.0
_QUIET_SECONDS = 10.0  # Between lines, where there is nothing to redraw.
_NOTEBOOK_SECONDS = 0.5  # Between two states of the line in a notebook.
_NOTEBOOK_WIDTH = 100  # Characters; output areas do not say how wide they are.


def phase_costs(
  experiment: Experiment, method: ContinualMethod, *, keeping: bool = False
) -> list[dict[str, float]]:
  """Estimated cost of each phase of each task, in forward passes of one example.

  Batches count as they are computed: filled up to their size.

  Args:
    experiment: what is run.
    method: of the experiment, or a reference.
    keeping: whether evaluations keep the parts of answers that do not change.
  """
  training = experiment.training
  learning, size = training.batch_size * _TRAIN_COST, float(training.eval_batch_size)
  out = []
  for t in range(len(experiment.scenario.tasks)):
    batches = phase_batches(experiment, method, t)
    passes = size * method.passes(t + 1)
    each = {'prepare': size, 'train': learning, 'consolidate': passes}
    found = {}
    for step in plan_of(method):
      name = step if isinstance(step, str) else step.name
      if not has_phase(method, step, t):
        continue
      match step:
        case Gather():
          each[name] = size
        case Calibrating():
          each[name] = size * _TRAIN_COST
        case Fit():
          each[name] = learning
      found[name] = batches.get(name, 0) * each.get(name, 0.0)
    asked = batches['evaluate'] * passes
    if keeping and isinstance(method.predict, Parts):
      asked = size * _passes_left(experiment, method, method.predict.slots, t)
    out.append({**found, 'evaluate': asked})
    if 'start' in batches:
      out[-1]['start'] = batches['start'] * size * method.passes(1)
    if 'inside' in batches:
      out[-1]['inside'] = batches['inside'] * passes
  return out


def _passes_left(experiment: Experiment, method: ContinualMethod, slots: int, t: int) -> float:
  """Passes of one batch in the evaluation after task t, where all slots before its own are kept."""
  batches = round_batches(experiment, t)
  before = min(t, slots)
  new = min(t + 1, slots) - before
  beside = method.passes(t + 1) - before - new  # In the second step of answers.
  return batches * (beside + new) + new_batches(experiment, t) * before


def phase_batches(experiment: Experiment, method: ContinualMethod, t: int) -> dict[str, int]:
  """Number of batches of each phase of a task; `inside` are evaluations within training."""
  training = experiment.training
  size = training.eval_batch_size
  count = lambda split: steps_for(len(split.rows), size, 1)
  gathered = count(training_split(experiment, method, t))
  found = {
    'prepare': gathered,
    'train': training_steps(experiment, method, t),
    'consolidate': gathered,
    'evaluate': round_batches(experiment, t),
  }
  if t == 0 and training.evaluate == 'all':
    found['start'] = round_batches(experiment, -1)
  if training.evaluate_every is not None:
    found['inside'] = found['train'] // training.evaluate_every * found['evaluate']
  for step in plan_of(method):
    if isinstance(step, Fit):
      found[step.name] = fit_steps(experiment, method, step, t)
    elif isinstance(step, Gather | Calibrating):
      found[step.name] = count(gathered_split(experiment, method, step, t))
  return found


class Reporter:
  """Shows task, epoch, step, loss and time left: a bar, or lines where nothing can be redrawn."""

  def __init__(
    self,
    experiment: Experiment,
    method: ContinualMethod,
    name: str,
    console: 'Console',
    *,
    keeping: bool = False,
  ):
    """Shows nothing before it is entered."""
    self._experiment, self._name, self._console = experiment, name, console
    self._order = ('start', *phase_names(method), 'evaluate')
    self._costs = phase_costs(experiment, method, keeping=keeping)
    tasks = range(len(experiment.scenario.tasks))
    self._batches = [phase_batches(experiment, method, t) for t in tasks]
    self._before = self._sums()
    self._pace = Pace()
    self._loss: float | None = None
    self._show: Show = lambda shown, now: None
    self._close: Callable[[], None] = lambda: None

  def __enter__(self) -> 'Reporter':
    self._show, self._close = _display(self._console, self._name)
    return self

  def __exit__(self, *_: Any) -> None:
    self._close()

  def __call__(self, position: Position, loss: float | None, settled: bool) -> None:
    """Takes the position after a batch.

    Args:
      position: of the run.
      loss: the mean loss, where there is a new one.
      settled: whether all results so far have arrived from the devices.
    """
    self._loss = loss if loss is not None else self._loss
    batches, costs = self._done(position)
    kind, now = _kind(position), time.monotonic()
    self._pace.told(kind, batches.get(kind, 0), costs.get(kind, 0.0), now, settled=settled)
    _, total = self._before[-1]
    spent, everything = sum(costs.values()), sum(total.values()) or 1.0
    seconds = self._pace.left({name: cost - costs.get(name, 0.0) for name, cost in total.items()})
    inside = self._inside(position)
    task = f'task {position.task + 1}/{len(self._costs)}'
    left = '' if seconds is None else f'{_clock(seconds)} left'
    self._show(Shown(self._name, spent / everything, task, inside, left), now)

  def _sums(self) -> list[tuple[dict[str, int], dict[str, float]]]:
    """Batches and costs by kind, of the tasks before each one, and of the whole run."""
    out: list[tuple[dict[str, int], dict[str, float]]] = [({}, {})]
    for task_batches, task_costs in zip(self._batches, self._costs, strict=True):
      batches, costs = dict(out[-1][0]), dict(out[-1][1])
      for phase, cost in task_costs.items():
        kind = _KINDS.get(phase, phase)
        batches[kind] = batches.get(kind, 0) + task_batches.get(phase, 0)
        costs[kind] = costs.get(kind, 0.0) + cost
      out.append((batches, costs))
    return out

  def _done(self, position: Position) -> tuple[dict[str, int], dict[str, float]]:
    """Batches and costs that are done, by kind."""
    before = self._before[position.task]
    batches, costs = dict(before[0]), dict(before[1])

    def add(t: int, phase: str, done: int | None = None) -> None:
      of = self._batches[t].get(phase, 0)
      number, cost = of if done is None else min(done, of), self._costs[t].get(phase, 0.0)
      kind = _KINDS.get(phase, phase)
      batches[kind] = batches.get(kind, 0) + number
      costs[kind] = costs.get(kind, 0.0) + cost * number / max(1, of)

    for phase in self._order[: self._order.index(position.phase)]:
      add(position.task, phase)
      if phase == 'train':
        add(position.task, 'inside')
    add(position.task, position.phase, position.batch)
    every = self._experiment.training.evaluate_every
    if position.phase == 'train' and every is not None:
      going = position.inside is not None
      whole = position.batch // every - going
      add(position.task, 'inside',
          whole * self._batches[position.task]['evaluate'] + (position.inside or 0))  # fmt: skip
    return batches, costs

  def _inside(self, position: Position) -> tuple[str, ...]:
    """Where in a task the run is, most important part first."""
    if position.phase != 'train' or position.inside is not None:
      return ('evaluate' if position.inside is not None else position.phase,)
    steps = self._batches[position.task]['train']
    epochs = self._experiment.training.epochs
    epoch = min(epochs, position.batch * epochs // max(1, steps) + 1)
    found = (f'epoch {epoch}/{epochs}', f'step {position.batch}/{steps}')
    return found if self._loss is None else (*found, f'loss {self._loss:.3f}')


# Phases that run the same compiled function.
_KINDS = {'start': 'evaluate', 'inside': 'evaluate'}


def _kind(position: Position) -> str:
  phase = 'evaluate' if position.inside is not None else position.phase
  return _KINDS.get(phase, phase)


def _clock(seconds: float) -> str:
  whole = round(seconds)
  hours, minutes = whole // 3600, whole % 3600 // 60
  return f'{hours}:{minutes:02}:{whole % 60:02}' if hours else f'{minutes}:{whole % 60:02}'


Show = Callable[[Shown, float], None]


def _display(console: 'Console', name: str) -> tuple[Show, Callable[[], None]]:
  """Functions that show the line at a time in seconds, and that take it away."""
  if console.is_terminal:
    return _in_terminal(console, name)
  if console.is_jupyter and (made := _in_notebook(name)) is not None:
    return made
  return _as_lines(console), lambda: None


def _as_lines(console: 'Console') -> Show:
  """A line now and then; none by runs that are quick."""
  said = time.monotonic()

  def show(shown: Shown, now: float) -> None:
    nonlocal said
    if now - said > _QUIET_SECONDS:
      said = now
      # Whatever reads a log wraps it.
      console.print(plain(shown), highlight=False, markup=False, soft_wrap=True)

  return show


def _in_terminal(console: 'Console', name: str) -> tuple[Show, Callable[[], None]]:
  """A line that is redrawn, and is gone at the end."""
  from rich.live import Live
  from rich.spinner import Spinner
  from rich.text import Text

  spinner = Spinner('dots')
  latest = Shown(name, 0.0, 'compiling')

  def line() -> Any:
    # One column is the terminal's last, two are the spinner's.
    text = fitted(latest, console.width - 3)
    spinner.update(text=Text(text, no_wrap=True, overflow='crop'))
    return spinner

  live = Live(get_renderable=line, console=console, transient=True)
  live.start()

  def show(shown: Shown, now: float) -> None:
    nonlocal latest
    del now
    latest = shown

  return show, live.stop


def _in_notebook(name: str) -> tuple[Show, Callable[[], None]] | None:
  """A line below the cell that is redrawn and stays; None where there is no IPython."""
  try:
    from IPython.display import display  # pyright: ignore[reportMissingImports]
  except ImportError:
    return None
  latest, said = Shown(name, 0.0, 'compiling'), 0.0
  put = lambda: {'text/plain': fitted(latest, _NOTEBOOK_WIDTH)}
  handle = display(put(), raw=True, display_id=True)

  def show(shown: Shown, now: float) -> None:
    nonlocal latest, said
    latest = shown
    if now - said > _NOTEBOOK_SECONDS:
      said = now
      handle.update(put(), raw=True)

  return show, lambda: handle.update(put(), raw=True)
