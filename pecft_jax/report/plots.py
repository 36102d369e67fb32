"""The figures of one run, each as an inline SVG string."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pecft_jax.metrics import Measure
from pecft_jax.report import glossary, svg
from pecft_jax.report.classes import by_class
from pecft_jax.report.read import Run
from pecft_jax.text import rounded

WIDE = 10  # More tasks than this take the whole width.


@svg.styled()
def averages(run: Run) -> str:
  """The average after each task, in the band between the two bounds."""
  figure = Figure(figsize=(11, 4.3))
  axes = figure.add_subplot()
  by = scale(run.measure)
  bounds = {name: by * ref.curve() for name, ref in run.references.items() if ref.finished}
  colors = {'finetune': svg.LOWER, 'joint': svg.UPPER}
  if {'finetune', 'joint'} <= set(bounds):
    k = min(len(bounds[name]) for name in colors)
    band = (bounds['finetune'][:k], bounds['joint'][:k])
    sign = run.measure.sign
    where = {'where': sign * band[0] <= sign * band[1], 'interpolate': True}
    axes.fill_between(
      np.arange(1, k + 1), *band, **where, color=svg.METHOD, alpha=0.08, linewidth=0
    )
  lines = [
    (glossary.NAMES[name], curve, colors.get(name, svg.MUTED), '--')
    for name, curve in bounds.items()
  ]
  lines.append((run.title, by * run.curve(), svg.METHOD, '-'))
  ends = []
  for name, curve, color, dash in lines:
    width, marker = (2.8, 'o') if dash == '-' else (1.8, 'o' if len(curve) == 1 else '')
    time = np.arange(1, len(curve) + 1)
    (line,) = axes.plot(time, curve, dash, color=color, marker=marker, clip_on=False)
    line.set(linewidth=width, markersize=5.5)
    ends.append(
      (len(curve), curve[-1], f'{name}\u2002{glossary.bare(run.measure, curve[-1] / by)}', color)
    )
  task_axis(axes, run.total)
  everything = np.concatenate([curve for _, curve, _, _ in lines])
  value_axis(axes, everything, run.measure)
  words = f'average {run.measure.name}'
  axes.set(xlabel='tasks learned', ylabel=glossary.titled(words, run.measure))
  finish(figure, axes, ends, run.total)
  end = glossary.level(run.measure, run.curve()[-1])
  label = f'{words.capitalize()} after each task: {run.title} ends at {end}'
  return svg.render(figure, 'average', label)


@svg.styled()
def classes(run: Run) -> str:
  """The accuracies of all classes from the worst to the best, each with its interval."""
  found = by_class(run)
  values = 100 * np.array([each.accuracy for each in found])
  low, high = 100 * np.array([each.interval for each in found]).T
  place = np.arange(1, len(found) + 1)
  figure = Figure(figsize=(11, 2.9))
  axes = figure.add_subplot()
  few = len(found) <= 60
  axes.vlines(place, low, high, color=svg.METHOD, alpha=0.35, linewidth=6 if few else 1.5)
  axes.plot(place, values, 'o', color=svg.METHOD, markersize=5.5 if few else 2.5, clip_on=False)
  mean = values.mean()
  axes.axhline(mean, color=svg.MUTED, linewidth=1, linestyle='--')
  axes.set(xlim=(0.5, len(found) + 0.5), ylim=(0, 100), ylabel='accuracy (%)')
  axes.grid(False, axis='x')
  if len(found) <= 20:
    axes.set_xticks(place, [each.name[:14] for each in found], rotation=30, ha='right')
  else:
    axes.set(xlabel='classes, the worst first')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  label = f'Accuracy of each class, the worst first: from {values[0]:.1f} % to {values[-1]:.1f} %'
  return svg.render(figure, 'classes', label)


@svg.styled()
def matrix(run: Run) -> str:
  """Heat map of the matrix with its numbers, and the average of each row beside it."""
  a = scale(run.measure) * run.matrix
  k, total = a.shape
  font = 10 if total <= WIDE else max(6.5, 10.5 - 0.12 * total)
  if run.measure.percent:
    low, high = 10 * np.floor(np.nanmin(a) / 10), 10 * np.ceil(np.nanmax(a) / 10)
    written = lambda value: f'{value:.{1 if total <= WIDE else 0}f}'
  else:
    low, high = np.nanmin(a), np.nanmax(a)
    written = lambda value: rounded(value, 3 if total <= WIDE else 2)
  size = _half(total) if total <= WIDE else (11, 1.3 + 0.31 * total)
  figure = Figure(figsize=size)
  axes = figure.add_subplot()
  for (row, column), value in np.ndenumerate(a):
    if np.isnan(value):
      continue
    color = svg.HEAT((value - low) / (high - low) if high > low else 1.0)
    axes.add_patch(Rectangle((column + 0.52, row + 0.52), 0.96, 0.96, color=color, linewidth=0))
    text = '#ffffff' if np.dot(color[:3], (0.299, 0.587, 0.114)) < 0.58 else '#0f1d38'
    style = 'italic' if column > row else 'normal'
    axes.text(
      column + 1,
      row + 1,
      written(value),
      ha='center',
      va='center',
      color=text,
      fontsize=font,
      fontstyle=style,
    )
  for row in range(k, total):  # Still to come.
    for column in range(row + 1):
      place = (column + 0.52, row + 0.52)
      axes.add_patch(Rectangle(place, 0.96, 0.96, color=svg.GRID, alpha=0.45, linewidth=0))
  axes.text(total + 1.1, 0.38, 'average', ha='center', va='bottom', color=svg.MUTED, fontsize=font)
  for row in range(k):
    mean = a[row, : row + 1].mean()
    place = {'ha': 'center', 'va': 'center', 'fontsize': font, 'fontweight': 'bold'}
    average = f'{mean:.1f}' if run.measure.percent else rounded(mean)
    axes.text(total + 1.1, row + 1, average, color=svg.METHOD, **place)
  axes.set(xlim=(0.5, total + 1.6), ylim=(total + 0.5, 0.5))
  axes.grid(False)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  ticks = np.arange(1, total + 1)
  axes.set_xticks(ticks, _names(run) or ticks, rotation=30 if _names(run) else 0, fontsize=font)
  axes.set_yticks(ticks, ticks, fontsize=font)
  what = glossary.titled(run.measure.name, run.measure)
  axes.set(xlabel=f'{what} on task', ylabel='after learning task')
  label = f'{what.capitalize()} matrix of {run.title}: rows are times, columns are tasks'
  return svg.render(figure, 'matrix', label)


@svg.styled()
def forgetting(run: Run) -> str:
  """The measure on each task over time, from the moment it is learned."""
  k, total = run.matrix.shape
  by, words = scale(run.measure), run.measure.name
  wide = total > WIDE
  figure = Figure(figsize=(11, 4.6) if wide else _half(total))
  axes = figure.add_subplot()
  ends, every = [], -(-k // 24)
  for j in range(k):
    color = svg.ORDER(j / max(total - 1, 1))
    time, curve = np.arange(j + 1, k + 1), by * run.matrix[j:, j]
    width = 1.5 if wide else 2.2
    axes.plot(time, curve, color=color, alpha=0.9, linewidth=width, clip_on=False)
    axes.plot(time[:1], curve[:1], 'o', color=color, markersize=4 if wide else 6, clip_on=False)
    if j % every == 0:
      names = _names(run)
      text = str(j + 1) if wide else names[j] if names else f'task {j + 1}'
      ends.append((k, curve[-1], text, color))
  task_axis(axes, total)
  value_axis(axes, by * run.matrix[np.tri(k, total, dtype=bool)], run.measure)
  ylabel = glossary.titled(f'{words} on each task', run.measure)
  axes.set(xlabel='tasks learned', ylabel=ylabel)
  finish(figure, axes, ends, total, size=8.5 if wide else 10)
  return svg.render(
    figure, 'forgetting', f'{words.capitalize()} of each task of {run.title} over time'
  )


@svg.styled()
def training_loss(run: Run) -> str | None:
  """Training loss over all updates with the borders of tasks; None where nothing was trained."""
  tasks = losses(run)
  if not tasks:
    return None
  figure = Figure(figsize=(11, 2.9))
  axes = figure.add_subplot()
  borders = []
  for index, (step, loss) in tasks.items():
    color = svg.ORDER(index / max(run.total - 1, 1))
    borders.append((float(step[0]), float(step[-1]), index, color))
    axes.plot(step, loss, color=color, linewidth=0.7, alpha=0.35)
    dot = 'o' if len(step) <= 12 else ''
    (line,) = axes.plot(*_smooth(step, loss), dot + '-', color=color, linewidth=2.0)
    line.set(markersize=3.5, clip_on=not dot)
  everything = np.concatenate([loss for _, loss in tasks.values()])
  positive = everything[everything > 0]
  if len(positive) == len(everything) and positive.max() > 300 * positive.min():
    axes.set_yscale('log')
  axes.set_xlim(borders[0][0], max(borders[-1][1], borders[0][0] + 1))
  font = 9 if len(borders) <= WIDE else 8
  for first, last, index, color in borders:
    if first > borders[0][0]:
      axes.axvline(first, color=svg.GRID, linewidth=1.0)
    above = {'xytext': (0, 4), 'textcoords': 'offset points', 'ha': 'center', 'va': 'bottom'}
    name = f'task {index + 1}' if len(borders) <= WIDE else f'{index + 1}'
    middle = ((first + last) / 2, 1)
    axes.annotate(name, middle, xycoords=axes.get_xaxis_transform(), color=color, fontsize=font,
                  **above)  # fmt: skip
  axes.grid(False, axis='x')
  axes.xaxis.set_major_locator(MaxNLocator('auto', integer=True))
  axes.set(xlabel='updates', ylabel='training loss')
  return svg.render(figure, 'loss', f'Training loss of {run.title} over all tasks')


def losses(run: Run) -> dict[int, tuple[np.ndarray, np.ndarray]]:
  """By task in order: updates over the sequence and their losses, averaged where there are many."""
  tasks: dict[int, dict[float, float]] = {}
  for row in run.log:
    found = [row.get(key) for key in ('task', 'step', 'loss')]
    numbers = [float(value) for value in found if value is not None]
    if row.get('kind') == 'train' and len(numbers) == 3 and np.isfinite(numbers).all():
      # A resumed run repeats the steps since its checkpoint; the last row counts.
      task, step, loss = numbers
      tasks.setdefault(int(task), {})[step] = loss
  out, start = {}, -np.inf
  for task, values in sorted(tasks.items()):
    points = np.array(sorted(values.items()))
    # Steps may count over the sequence or from 0 in each task.
    points[:, 0] += start if points[0, 0] < start else 0.0
    start = points[-1, 0] + 1
    pieces = np.array_split(points, min(len(points), max(400 // len(tasks), 20)))
    x, y = np.array([piece.mean(0) for piece in pieces]).T
    out[task] = (x, y)
  return out


def _smooth(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Running mean over a tenth of the points, shorter at the ends."""
  half = max(len(y) // 20, 0)
  sides = [min(half, i, len(y) - 1 - i) for i in range(len(y))]
  return x, np.array([y[i - h : i + h + 1].mean() for i, h in enumerate(sides)])


def _half(total: int) -> tuple[float, float]:
  """Size of a figure that takes half the width, the same for both beside each other."""
  return 5.3, max(1.3 + 0.38 * total, 3.3)


def _names(run: Run) -> tuple[str, ...] | None:
  """Short names of few tasks; else None, and numbers are shown."""
  plain = all(name == f'task {j + 1}' for j, name in enumerate(run.tasks))
  short = all(len(name) <= 12 for name in run.tasks)
  return run.tasks if short and not plain and run.total <= WIDE else None


def task_axis(axes: Axes, total: int) -> None:
  axes.set_xlim(1, max(total, 2))
  axes.xaxis.set_major_locator(MaxNLocator(20, integer=True, min_n_ticks=1))
  axes.grid(False, axis='x')


def scale(measure: Measure) -> float:
  """The factor of values in a figure: fractions are drawn in percent."""
  return 100.0 if measure.percent else 1.0


def value_axis(axes: Axes, values: np.ndarray, measure: Measure) -> None:
  """Sets the limits of the axis of scaled values."""
  low, high = float(values.min()), float(values.max())
  if not measure.percent:
    room = 0.06 * (high - low) or abs(high) / 10 or 1.0
    axes.set_ylim(low - room, high + room)
    return
  # At least 15 points, so that noise does not look like forgetting.
  room = max(0.06 * (high - low), (15 - (high - low)) / 2, 1.0)
  high = min(high + room, 100.5)
  axes.set_ylim(max(min(low - room, high - 15), 0), high)


def finish(
  figure: Figure,
  axes: Axes,
  ends: list[tuple[float, float, str, str]],
  total: int,
  size: float = 10.5,
) -> None:
  """Writes the labels at the ends of lines once the axes have their place."""
  # Constrained layout ignores text outside the axes until it is drawn.
  figure.draw_without_rendering()
  last = max(total, 2)
  svg.label_ends(axes, ends, beside=0.03 * (last - 1), size=size)
  axes.set_xlim(1, last)
