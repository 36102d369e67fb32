"""Figures as inline SVG: one look, both colour schemes, the same bytes for the same data."""

import contextlib
import html
import io
import re
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

# Colours that follow the page's scheme. Figures are drawn in these and carry them as
# CSS variables with these values as the fallback, so that an SVG cut out of the page
# still looks right.
INK = '#1c2430'
MUTED = '#5b6776'
GRID = '#e4e8ed'
METHOD = '#1663b0'
LOWER = '#c2500c'
UPPER = '#0b7a5b'
_SCHEME = {
  'ink': INK,
  'muted': MUTED,
  'grid': GRID,
  'method': METHOD,
  'lower': LOWER,
  'upper': UPPER,
}

# Distinct with any common colour-vision deficiency (after Okabe and Ito), and visible on white
# and on black.
CYCLE = ('#2272b4', '#d9661f', '#12936b', '#c066a0', '#c99000', '#4aa3d8', '#7d6bc9', '#8a7356')
HEAT = LinearSegmentedColormap.from_list(
  'heat', ['#fbf3d0', '#b9e0bd', '#5dbcc0', '#2b7fb8', '#1d4e98', '#12296a']
)
ORDER = LinearSegmentedColormap.from_list('order', ['#dd8a22', '#c4577c', '#7c63c0', '#3d84cf'])

STYLE = {
  'svg.fonttype': 'none',
  'svg.hashsalt': 'pecft',
  'font.family': 'DejaVu Sans',
  'font.size': 10.5,
  'text.parse_math': False,  # Names may have dollar signs.
  'text.color': INK,
  'axes.labelcolor': MUTED,
  'axes.edgecolor': MUTED,
  'axes.linewidth': 0.8,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.facecolor': 'none',
  'grid.color': GRID,
  'grid.linewidth': 0.8,
  'xtick.color': MUTED,
  'ytick.color': MUTED,
  'xtick.major.size': 3,
  'ytick.major.size': 0,
  'lines.solid_capstyle': 'round',
  'lines.solid_joinstyle': 'round',
  'figure.facecolor': 'none',
  'figure.constrained_layout.use': True,
}


def styled() -> contextlib.ContextDecorator:
  """The context in which figures are made and rendered, mostly as a decorator."""
  return cast(contextlib.ContextDecorator, matplotlib.rc_context(cast(Any, STYLE)))


def render(figure: Figure, name: str, label: str) -> str:
  """The figure as an `<svg>` element.

  Args:
    figure: made under `styled`.
    name: unique within a page, so that ids of two figures do not clash.
    label: what the figure shows, for readers who cannot see it.
  """
  buffer = io.StringIO()
  nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
  figure.savefig(buffer, format='svg', metadata=nothing)
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'\s*<metadata>.*?</metadata>', '', text, flags=re.S)
  # This rule would reach the whole page from an inline SVG; as an attribute it does not.
  text = re.sub(r'\s*<defs>\s*<style.*?</style>\s*</defs>', '', text, count=1, flags=re.S)
  text = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{name}-', text)
  text = text.replace("'DejaVu Sans'", "system-ui, -apple-system, 'Segoe UI', sans-serif")
  for key, color in _SCHEME.items():
    text = text.replace(color, f'var(--{key}, {color})')
  attributes = f'role="img" aria-label="{html.escape(label)}" stroke-linejoin="round"'
  return text.replace('<svg', f'<svg {attributes}', 1).strip()


def spread(positions: list[float], gap: float) -> np.ndarray:
  """Moves labels apart to at least `gap`, as little as possible in the squared sense.

  Isotonic regression on the positions less their place in the order: neighbours that
  are too near form a block around their mean.
  """
  order = np.argsort(positions, kind='stable')
  blocks: list[tuple[float, int]] = []  # (mean, members)
  for place, index in enumerate(order):
    mean, members = float(positions[index]) - place * gap, 1
    while blocks and blocks[-1][0] > mean:
      before, more = blocks.pop()
      mean = (before * more + mean * members) / (more + members)
      members += more
    blocks.append((mean, members))
  flat = np.concatenate([np.full(members, mean) for mean, members in blocks] or [np.zeros(0)])
  out = np.empty(len(positions))
  out[order] = flat + gap * np.arange(len(positions))
  return out


def label_ends(
  axes: Axes, ends: list[tuple[float, float, str, str]], beside: float, size: float = 10.5
) -> None:
  """Writes each line's name at its end instead of in a legend.

  Args:
    axes: with final limits.
    ends: (x, y, text, colour) of each line's last point.
    beside: how far right of the end the label stands, in data units.
    size: of the font, in points.
  """
  low, high = axes.get_ylim()
  figure = axes.get_figure(root=True)
  assert figure is not None
  height = axes.get_position().height * figure.get_figheight() * 72
  gap = (high - low) / max(height, 1) * size * 1.25
  for at in sorted({x for x, *_ in ends}):
    here = [end for end in ends if end[0] == at]
    places = spread([y for _, y, _, _ in here], gap)
    # A block of labels that would leave the axes moves as one.
    places += min(0.0, high - places.max()) + max(0.0, low - places.min())
    for (x, end, text, color), y in zip(here, places, strict=True):
      line = {'color': color, 'linewidth': 0.7, 'alpha': 0.55, 'clip_on': False}
      axes.plot([x, x + 0.85 * beside], [end, y], **line)
      bold = 'bold' if color == METHOD else 'normal'
      place = {'va': 'center', 'clip_on': False}
      axes.text(x + beside, y, text, color=color, fontsize=size, fontweight=bold, **place)
