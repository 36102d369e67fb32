"""The figure of a comparison: the average of each method as tasks are learned."""

import functools

import numpy as np
from matplotlib.figure import Figure

from pecft_jax.report import glossary, plots, svg
from pecft_jax.report.groups import Group, row_names

_MARKERS = 'osD^vPX*'


@svg.styled()
def averages(groups: tuple[Group, ...], bounds: bool = True) -> str:
  """Means over seeds with a band of one standard deviation, the bounds dashed in grey.

  Args:
    groups: of one measure.
    bounds: whether to draw the mean of the runs of each bound; they need the same
      identity for all groups.
  """
  figure = Figure(figsize=(11, max(4.6, 0.24 * len(groups))))
  axes = figure.add_subplot()
  measure = groups[0].runs[0].measure
  scale, written = plots.scale(measure), functools.partial(glossary.bare, measure)
  names = row_names(groups)
  ends, everything = [], []
  total = max(group.runs[0].total for group in groups)
  for name, words in glossary.NAMES.items() if bounds else ():
    found = [run.references[name] for g in groups for run in g.runs if name in run.references]
    found = [reference.curve() for reference in found if reference.done]
    if found:
      curve = np.mean(found, axis=0)
      axes.plot(np.arange(1, total + 1), scale * curve, '--', color=svg.MUTED, linewidth=1.3)
      ends.append((total, scale * curve[-1], f'{words}\u2002{written(curve[-1])}', svg.MUTED))
      everything.append(scale * curve)
  for index, group in reversed(list(enumerate(groups))):
    color, marker = (kinds[index % len(kinds)] for kinds in (svg.CYCLE, _MARKERS))
    dash = '-' if index < len(svg.CYCLE) else ':'
    curves = scale * np.stack([run.curve() for run in group.runs])
    middle, time = curves.mean(0), np.arange(1, curves.shape[1] + 1)
    if len(curves) > 1:
      spread = curves.std(0, ddof=1)
      band = (middle - spread, middle + spread)
      axes.fill_between(time, *band, color=color, alpha=0.16, linewidth=0, clip_on=False)
      everything += band
    look = {'color': color, 'marker': marker, 'markersize': 5, 'linewidth': 2.2}
    axes.plot(time, middle, dash, clip_on=False, **look)
    everything.append(middle)
    ends.append(
      (len(middle), middle[-1], f'{names[index]}\u2002{written(middle[-1] / scale)}', color)
    )
  plots.task_axis(axes, total)
  plots.value_axis(axes, np.concatenate(everything), measure)
  axes.set(xlabel='tasks learned', ylabel=glossary.titled(f'average {measure.name}', measure))
  plots.finish(figure, axes, ends, total)
  return svg.render(
    figure,
    'curves',
    f'Average {measure.name} after each task, means over seeds: {"; ".join(names)}',
  )
