"""report.html: one run on one self-contained page."""

from pathlib import Path

import numpy as np

from pecft_jax.metrics import average_accuracy, metrics_of
from pecft_jax.report import environments, facts, glossary
from pecft_jax.report.bounds import ENDS, Standing, beside, clauses, headline, standing
from pecft_jax.report.classes import by_class, task_intervals
from pecft_jax.report.html import Raw, document, element, figure, section, table
from pecft_jax.report.read import Run, read_run
from pecft_jax.report.stamp import is_current, stamp_of

_INTERVALS = (
  'Intervals (Wilson, 95 %) say what the choice of test examples leaves open; the spread over '
  'seeds is another.'
)
_ROW = 4  # Tiles in a row; metrics that do not fill a row are in the table only.


def write_page(run_dir: str | Path, out: str | Path | None = None) -> Path:
  """Writes the page of a work directory, finished or not, and returns its path.

  Args:
    run_dir: a work directory.
    out: the HTML file to write, or a directory for a `report.html`; the work directory by default.

  Returns:
    The path of the page.

  Raises:
    ValueError: where the directory's results.json cannot be read.

  >>> directory = Path('runs/ewc')
  >>> directory.mkdir(parents=True)
  >>> _ = (directory / 'results.json').write_text(
  ...   '{"method": "ewc", "accuracy_matrix": [[1.0, null], [0.5, 1.0]]}')
  >>> write_page(directory).name
  'report.html'
  """
  run = read_run(run_dir)
  path = run.path if out is None else Path(out)
  path = path / 'report.html' if path.is_dir() else path
  stamp = stamp_of(run.path)
  if is_current(path, stamp):  # Drawing it takes seconds.
    return path
  at = standing(run)
  body = [_top(run, at), _bar(at)]
  if run.finished:
    body += [_tiles(run), _figures(run), _metrics(run), _tasks(run), _classes(run)]
  body += [_costs(run), section('What was measured', _pairs(facts.identity(run)))]
  body.append(section('When and where', _pairs(environments.lines(run))))
  if run.config:
    body.append(section('Configuration', _pairs(facts.configuration(run))))
  body.append(element('footer', f'Made by pecft_jax from {run.path.resolve().name}/results.json.'))
  body.append(Raw(f'<!-- {stamp} -->'))
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(document(headline(at), *body), encoding='utf-8')
  return path


def _top(run: Run, at: Standing) -> Raw:
  name, peft = run.results.get('name'), run.results.get('peft')
  kicker = ' · '.join(str(part) for part in (name, peft) if part)
  unfinished = f'running: {run.finished} of {run.total} tasks'
  badge = [] if run.done else [' ', element('span', unfinished, class_='badge')]
  if at.accuracy is None:
    head = element('h1', at.title, ': no task finished yet', *badge)
  else:
    number = element('span', glossary.level(at.measure, at.accuracy), class_='method')
    head = element('h1', f'{at.title}: ', number, f' average {at.measure.name}', *badge)
  lead = [element('p', '; '.join(clauses(at)), class_='lead')] if clauses(at) else []
  notes = [element('p', f'{note}.', class_='note') for note in at.notes]
  return element('header', element('p', kicker, class_='kicker'), head, *lead, *notes)


def _bar(at: Standing) -> Raw:
  """The gap between the bounds, with the method on it; nothing without both bounds."""
  accuracy, lower, upper, closed = at.accuracy, at.lower, at.upper, at.closed
  if accuracy is None or lower is None or upper is None or closed is None:
    return Raw('')
  share = 100 * min(max(closed, 0.0), 1.0)
  edge = ' first' if share < 12 else ' last' if share > 88 else ''
  low, high = (f'{glossary.NAMES[n]} ' for n in ENDS)
  own, below, above = (glossary.level(at.measure, v) for v in (accuracy, lower, upper))
  return element(
    'div',
    element('i', style=f'width:{share:.1f}%'),
    element('span', f'{at.title} {own}', class_=f'above method{edge}', style=f'left:{share:.1f}%'),
    element('span', low, element('b', below), class_='below first',
            style='left:0;color:var(--lower)'),
    element('span', high, element('b', above), class_='below last',
            style='left:100%;color:var(--upper)'),
    class_='bar',
  )  # fmt: skip


def _tiles(run: Run) -> Raw:
  tiles = []
  for metric in [m for m in metrics_of(run.measure) if m.main and m.name in run.metrics]:
    text = glossary.written(metric, run.metrics[metric.name])
    points = metric.difference and run.measure.percent
    unit = element('small', ' points') if points else ''
    tiles.append((metric.title, text, unit, metric.definition))
  # In task-incremental runs the matrix itself is task-aware.
  if run.task_aware is not None and len(run.task_aware) and run.scenario != 'task':
    value = float(average_accuracy(run.task_aware)[-1])
    words = f'Average {run.measure.name} if the task were given at test time.'
    title = f'Task-aware {run.measure.name}'
    tiles.insert(1, (title, glossary.level(run.measure, value), '', words))
  tiles = tiles[: min(len(tiles) // _ROW * _ROW, 2 * _ROW)]
  return element('div', *(
    element('div', element('div', name, class_='name'),
            element('div', text, unit, class_='value'), element('p', words), class_='tile')
    for name, text, unit, words in tiles), class_='tiles')  # fmt: skip


def _figures(run: Run) -> Raw:
  from pecft_jax.report import plots  # Imports matplotlib, which nothing else needs.

  wide = run.total > plots.WIDE
  between = ' The band lies between the bounds.' if set(ENDS) <= set(run.references) else ''
  found = [
    figure(
      plots.averages(run),
      f'Average {run.measure.name} as tasks are learned',
      f'Mean {run.measure.name} over the tasks seen so far.{between}',
    ),
    figure(
      plots.matrix(run),
      f'{run.measure.name.capitalize()} matrix',
      f'A column follows one task; the diagonal was just learned.{_ahead(run)}',
      wide,
    ),
    figure(
      plots.forgetting(run),
      'What becomes of each task',
      'Each line starts with a dot, where its task is learned.',
      wide,
    ),
  ]
  loss = plots.training_loss(run)
  if loss:
    words = 'All updates in order; each colour is a task, the strong line a running mean.'
    found.append(figure(loss, 'Training loss', words))
  return element('div', *found, class_='grid')


def _ahead(run: Run) -> str:
  """An explanation of entries above the diagonal, where there are any."""
  above = np.triu(~np.isnan(run.matrix), 1).any()
  return ' Above it, in italics: tasks not learned yet.' if above else ''


def _metrics(run: Run) -> Raw:
  """Every metric of the method beside those of its bounds."""
  bounds = beside(run)
  rows = []
  for metric in metrics_of(run.measure):
    values = [run.metrics.get(metric.name), *(v.get(metric.name) for v in bounds.values())]
    if any(value is not None for value in values):
      cells = ['' if v is None else glossary.written(metric, v) for v in values]
      cells[0] = element('b', cells[0], class_='method')
      rows.append((metric.title, *cells, element('p', metric.definition, class_='text')))
  percent = run.measure.percent
  note = f'{run.measure.name.capitalize()} in percent; differences in points.' if percent else ''
  return section('Metrics', table(['', run.title, *bounds, ''], rows), note=note)


def _costs(run: Run) -> Raw:
  """Costs of the method, beside those of its bounds where they were run."""
  runs = [run, *run.references.values()]
  columns = [[text for _, text in facts.efficiency(each)] for each in runs]
  titles = [title for title, _ in facts.efficiency(run)]
  rows = [
    (title, *('\u2013' if text is None else text for text in texts))
    for title, *texts in zip(titles, *columns, strict=True)
    if any(text is not None for text in texts)
  ]
  if not rows:
    return Raw('')
  names = [run.title, *(glossary.NAMES[name] for name in run.references)]
  return section('What it costs', table(['', *names], rows), note=environments.on_times(runs))


def _tasks(run: Run) -> Raw:
  words = _INTERVALS if any(task_intervals(run)) else ''
  note = ' '.join(filter(None, (words, environments.on_times([run]))))
  return section('Task by task', table(*facts.per_task(run)), note=note)


def _classes(run: Run) -> Raw:
  """The classes from the worst to the best; nothing where they were not counted."""
  classes = by_class(run)
  if not classes:
    return Raw('')
  from pecft_jax.report import plots

  head, rows = facts.per_class(run)
  which = f'the {len(rows)} worst of {len(classes)}' if len(rows) < len(classes) else 'worst first'
  note = f'Accuracy on each class after the last finished task, {which}. {_INTERVALS}'
  drawn = element('div', Raw(plots.classes(run)), class_='plot')
  return section('Class by class', drawn, table(head, rows), note=note)


def _pairs(rows: facts.Lines) -> Raw:
  missing = element('span', 'not recorded', class_='missing')
  return table([], [(title, missing if text is None else text) for title, text in rows], 'pairs')
