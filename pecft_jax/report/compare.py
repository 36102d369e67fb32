"""Several runs side by side: a page to read, and Markdown to commit."""

from collections.abc import Iterable
from pathlib import Path

from pecft_jax.metrics import metrics_of
from pecft_jax.report import columns, environments, facts, glossary
from pecft_jax.report.groups import (
  Comparison,
  Group,
  compare,
  deviation,
  final_average,
  mean,
  row_names,
)
from pecft_jax.report.html import Raw, document, element, figure, section, table
from pecft_jax.report.read import Run

_UNLIKE = 'These runs are not of one experiment'
_WHY = 'Differences between them are not differences between methods.'


def write_comparison(dirs: Iterable[str | Path], out: str | Path) -> Path:
  """Writes a self-contained page that compares work directories, and returns its path.

  Runs that differ only in their seed are one row, with the mean and the sample
  standard deviation over seeds. Unfinished runs are named and left out.

  Args:
    dirs: work directories.
    out: the HTML file to write, or a directory for a `comparison.html`.

  Returns:
    The path of the page.

  Raises:
    ValueError: without any directory, or where one cannot be read.

  >>> for method, last in (('er', 0.5), ('ewc', 0.75)):
  ...   directory = Path('runs') / method
  ...   directory.mkdir(parents=True, exist_ok=True)
  ...   _ = (directory / 'results.json').write_text(
  ...     f'{{"method": "{method}", "accuracy_matrix": [[1.0, null], [{last}, 1.0]]}}')
  >>> write_comparison(['runs/er', 'runs/ewc'], out='report.html').name
  'report.html'
  """
  found = compare(dirs)
  path = Path(out)
  path = path / 'comparison.html' if path.is_dir() else path
  path.parent.mkdir(parents=True, exist_ok=True)
  title = _title(found)
  body = [_top(found, title), _warning(found)]
  if found.groups:
    caption = 'Means over seeds; the band is one standard deviation to each side.'
    if not found.warnings and any(run.references for g in found.groups for run in g.runs):
      caption += ' Dashed: means of the bounds that were run beside them.'
    body += [_quality(found), *_curves(found, caption), _cost(found), _runs(found)]
    body += [] if found.warnings else [_shared(found)]
  if found.notes:
    body.append(section('Notes', *(element('p', f'{note}.') for note in found.notes)))
  body.append(element('footer', 'Made by pecft_jax.'))
  path.write_text(document(title, *body), encoding='utf-8')
  return path


def comparison_markdown(dirs: Iterable[str | Path]) -> str:
  """The comparison as a Markdown table, with warnings, identity and notes around it.

  Args:
    dirs: work directories.

  Raises:
    ValueError: without any directory, or where one cannot be read.

  >>> for method, last in (('er', 0.5), ('ewc', 0.75)):
  ...   directory = Path('runs') / method
  ...   directory.mkdir(parents=True, exist_ok=True)
  ...   _ = (directory / 'results.json').write_text(
  ...     f'{{"method": "{method}", "accuracy_matrix": [[1.0, null], [{last}, 1.0]]}}')
  >>> print(comparison_markdown(['runs/er', 'runs/ewc']))
  | Method | Seeds | ...
  """
  found = compare(dirs)
  lines = [f'> **{_UNLIKE}.** {_WHY}'] if found.warnings else []
  lines += [f'> - {_plain(warning)}' for warning in found.warnings]
  comparable = not found.warnings
  if found.groups:
    for shown in (columns.quality, columns.cost):
      lines += ['', *_markdown(found.groups, shown(found.groups, comparable))]
    on_times = _plain(_on_times(found))
    lines += ['', on_times] if on_times else []
    lines += ['', f'Mean ± sample standard deviation over seeds. {_identity_line(found)}']
  lines += ['', *(f'- {_plain(note)}.' for note in found.notes)] if found.notes else []
  return '\n'.join(lines).strip() + '\n'


def _markdown(groups: tuple[Group, ...], shown: columns.Table) -> list[str]:
  peft = any(group.peft for group in groups)
  names = ['Method', 'PEFT'] if peft else ['Method']
  titles = ['Seeds', *(title for title, _ in shown)]
  lines = [_row([*names, *titles]), '|' + ' --- |' * len(names) + ' ---: |' * len(titles)]
  for index, group in enumerate(groups):
    name = f'{group.title} ({group.settings})' if group.settings else group.title
    cells = [column[index] for _, column in shown]
    texts = [f'**{cell.text}**' if cell.best else cell.text for cell in cells]
    first = [name, group.peft] if peft else [name]
    lines.append(_row([*first, str(len(group.runs)), *texts]))
  return lines


def _title(found: Comparison) -> str:
  if not found.groups:
    return 'No finished run to compare'
  if found.warnings or len(found.groups) == 1:
    runs = sum(len(group.runs) for group in found.groups)
    return f'Comparison of {runs} run{"" if runs == 1 else "s"}'
  best = found.groups[0]
  measure = best.runs[0].measure
  number = columns.averages(best.values(final_average), lambda value: glossary.bare(measure, value))
  return f'{best.label} leads with {number} {glossary.unit(measure)}'.rstrip()


def _top(found: Comparison, title: str) -> Raw:
  head = element('h1', title)
  if not found.groups or found.warnings:
    return element('header', head)
  run = found.groups[0].runs[0]
  identity = run.results.get('identity') or {}
  parts = [identity.get('benchmark'), f'{run.total} tasks', identity.get('backbone')]
  kicker = element('p', ' · '.join(str(part) for part in parts if part), class_='kicker')
  lead = [element('p', _lead(found), class_='lead')] if len(found.groups) > 1 else []
  return element('header', kicker, head, *lead)


def _lead(found: Comparison) -> str:
  """How far the best is ahead, and whether that is more than the spread over seeds."""
  first, second = (group.values(final_average) for group in found.groups[:2])
  measure = found.groups[0].runs[0].measure
  ahead = measure.sign * (mean(first) - mean(second))
  amount = f'{glossary.bare(measure, ahead)} {glossary.unit(measure, True)}'.rstrip()
  text = f'in average {measure.name}, {amount} ahead of {found.groups[1].label}'
  ours, theirs = deviation(first), deviation(second)
  if ours is None or theirs is None:
    return f'{text}; with one seed it is not known whether that is more than chance'
  return text if ahead > ours + theirs else f'{text}, which is within the spread over seeds'


def _warning(found: Comparison) -> Raw:
  if not found.warnings:
    return Raw('')
  items = element('ul', *(element('li', warning) for warning in found.warnings))
  inner = (element('h2', f'⚠ {_UNLIKE}'), element('p', _WHY), items)
  return element('div', *inner, class_='warning', role='alert')


def _quality(found: Comparison) -> Raw:
  marked = not found.warnings and len(found.groups) > 1
  best = '; the best of each column is blue' if marked else ''
  note = f'Mean ± sample standard deviation over seeds{best}.'
  shown = columns.quality(found.groups, comparable=not found.warnings)
  return section('What the methods reach', _table(found.groups, shown), note=note)


def _curves(found: Comparison, caption: str) -> list[Raw]:
  """A figure for each measure there is."""
  from pecft_jax.report import curves  # Imports matplotlib, which nothing else needs.

  drawn = []
  for measure in dict.fromkeys(group.runs[0].measure for group in found.groups):
    groups = tuple(group for group in found.groups if group.runs[0].measure == measure)
    svg = curves.averages(groups, bounds=not found.warnings)
    title = f'Average {measure.name} as tasks are learned'
    drawn.append(element('div', figure(svg, title, caption), class_='grid'))
  return drawn


def _cost(found: Comparison) -> Raw:
  shown = columns.cost(found.groups, comparable=not found.warnings)
  note = f'Means over seeds. {_on_times(found)}'.rstrip()
  return section('What they cost', _table(found.groups, shown), note=note)


def _on_times(found: Comparison) -> str:
  return environments.on_times([run for group in found.groups for run in group.runs])


def _table(groups: tuple[Group, ...], shown: columns.Table) -> Raw:
  rows, numbered = [], row_names(groups) != [group.label for group in groups]
  for index, group in enumerate(groups):
    cells = [column[index] for _, column in shown]
    texts = [element('span', c.text, class_='best') if c.best else c.text for c in cells]
    number = f'{index + 1} ' if numbered else ''
    rows.append((_two_lines(group, number), len(group.runs), *texts))
  return table(['', 'Seeds', *(title for title, _ in shown)], rows)


def _two_lines(group: Group, number: str) -> Raw:
  below = ' · '.join(part for part in (group.peft, group.settings) if part)
  return Raw(element('b', number, group.title) + element('div', below, class_='faint'))


def _runs(found: Comparison) -> Raw:
  rows = [
    (
      element('div', group.label),
      run.results.get('seed', 'not recorded'),
      glossary.level(run.measure, final_average(run)),
      _forgetting(run),
      element('div', str(run.path), class_='path'),
    )
    for group in found.groups
    for run in group.runs
  ]
  return section('Runs', table(['', 'seed', 'average', 'forgetting', 'directory'], rows))


def _shared(found: Comparison) -> Raw:
  """The identity of the best run: that of all runs, unless there is a warning."""
  missing = element('span', 'not recorded', class_='missing')
  own = ('Seeds', 'Status', 'State sha256', 'Compilations')
  rows = [
    (title, missing if text is None else text)
    for title, text in facts.identity(found.groups[0].runs[0])
    if title not in own
  ]
  return section('What was measured, in all runs', table([], rows, 'pairs'))


def _forgetting(run: Run) -> str:
  metric = next(metric for metric in metrics_of(run.measure) if metric.name == 'forgetting')
  return glossary.written(metric, run.metrics['forgetting'])


def _identity_line(found: Comparison) -> str:
  if found.warnings:
    return ''
  rows = dict(facts.identity(found.groups[0].runs[0]))
  names = ('Benchmark', 'Scenario', 'Backbone', 'Backbone sha256', 'Class order', 'Split digest')
  return '; '.join(f'{name.lower()}: {_plain(rows[name] or "not recorded")}' for name in names)


def _row(cells: list[str]) -> str:
  return '| ' + ' | '.join(map(_plain, cells)) + ' |'


def _plain(text: str) -> str:
  """Text escaped so that it neither ends a table cell nor starts HTML."""
  return text.replace('|', '\\|').replace('<', '&lt;').replace('\n', ' ')
