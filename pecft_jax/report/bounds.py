"""The place of a run between its bounds: sequential fine-tuning below, joint training above.

The masked bounds, between the two, are what a method should be above.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pecft_jax.metrics import ACCURACY, Measure, summarise
from pecft_jax.report import glossary
from pecft_jax.report.read import Run
from pecft_jax.text import percent

# The bounds between which a run stands.
ENDS = ('finetune', 'joint')


class Standing(NamedTuple):
  """Averages over tasks after the same number of tasks."""

  title: str  # The method.
  tasks: int  # Finished tasks, 0 where there is nothing to compare yet.
  total: int
  accuracy: float | None
  lower: float | None  # Sequential fine-tuning.
  upper: float | None  # Joint training.
  notes: tuple[str, ...]  # What is missing from the comparison, and why.
  measure: Measure = ACCURACY
  masked: tuple[str, float] | None = None  # The better of the masked bounds, by its title.

  @property
  def gained(self) -> float | None:
    """How much better than sequential fine-tuning."""
    return self._better(self.accuracy, self.lower)

  @property
  def missing(self) -> float | None:
    """How much worse than joint training."""
    return self._better(self.upper, self.accuracy)

  @property
  def closed(self) -> float | None:
    """Share of the gap between the bounds that the method closes; None without a gap."""
    if self.gained is None or self.missing is None or self.gained + self.missing <= 0:
      return None
    return self.gained / (self.gained + self.missing)

  def _better(self, one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else self.measure.sign * (one - other)


def standing(run: Run) -> Standing:
  """Compares a run with its references after the tasks that it has finished."""
  k, notes, values, absent = run.finished, list(run.problems), {}, []
  average = f'average_{run.measure.key}'
  for name, words in glossary.NAMES.items():
    reference, recorded = run.references.get(name), _recorded(run, name)
    values[name] = None
    if reference is not None and reference.finished >= max(k, 1):
      values[name] = float(reference.curve()[k - 1]) if k else None
    elif reference is not None:
      so_far = f'{reference.finished} of {reference.total} tasks'
      notes.append(f'Left out of the comparison: {words}, which has finished {so_far}')
    elif recorded.get(average) is not None:
      values[name] = float(recorded[average])
    elif name in ENDS and not _beside(run, name):
      absent.append(words)
  if absent:
    notes.append(f'No run of {" or ".join(absent)} beside this one')
  return Standing(
    title=run.title,
    tasks=k,
    total=run.total,
    accuracy=float(run.curve()[-1]) if k else None,
    lower=values['finetune'],
    upper=values['joint'],
    notes=tuple(notes),
    measure=run.measure,
    masked=_best(run.measure, {name: values[name] for name in values if name not in ENDS}),
  )


def _best(measure: Measure, values: Mapping[str, float | None]) -> tuple[str, float] | None:
  """The best of some bounds, by its title; None where none was run."""
  known = {glossary.NAMES[name]: value for name, value in values.items() if value is not None}
  best = max(known, key=lambda title: measure.sign * known[title], default=None)
  return None if best is None else (best, known[best])


def headline(at: Standing) -> str:
  """The standing as one sentence."""
  if at.accuracy is None:
    return f'{at.title}: no task finished yet'
  after = '' if at.tasks == at.total else f' after {at.tasks} of {at.total} tasks'
  words = f'average {at.measure.name}'
  text = f'{at.title}: {glossary.level(at.measure, at.accuracy)} {words}{after}'
  parts = clauses(at)
  return f'{text}; {"; ".join(parts)}' if parts else text


def clauses(at: Standing) -> list[str]:
  """The clauses about the bounds; none without bounds."""
  points = ' points' if at.measure.percent else ''
  amount = lambda value: f'{glossary.bare(at.measure, abs(value))}{points}'
  more = at.measure.higher_is_better
  worse, better = ('below', 'above') if more else ('worse than', 'better than')
  sides = []
  if at.gained is not None:
    where = worse if at.gained < 0 else 'over' if more else better
    sign = '+' if where == 'over' else ''
    sides.append(f'{sign}{amount(at.gained)} {where} {glossary.NAMES["finetune"]}')
  if at.missing is not None:
    where = worse if at.missing >= 0 else better
    sides.append(f'{amount(at.missing)} {where} {glossary.NAMES["joint"]}')
  closed = at.closed
  gap = f'closes {percent(closed, 0)} of the gap' if closed and closed > 0 else None
  found = [', '.join(sides), *([gap] if gap else [])] if sides else []
  if at.masked is not None and at.accuracy is not None:
    title, value = at.masked
    ahead = at.measure.sign * (at.accuracy - value)
    found.append(f'{amount(ahead)} {worse if ahead < 0 else better} {title}')
  return found


def beside(run: Run) -> dict[str, Mapping[str, float]]:
  """Metrics of the bounds after as many tasks as the run has finished, by the bound's title.

  The title of a bound with fewer finished tasks says how many its numbers are of.
  """
  out = {}
  for name, words in glossary.NAMES.items():
    reference, k = run.references.get(name), run.finished
    if reference is None or not reference.finished:
      if recorded := _recorded(run, name):
        out[words] = recorded
    elif reference.finished > k > 0:
      out[words] = _after(reference, k)
    else:
      late = (
        '' if reference.finished == k else f' (after {reference.finished} of {run.total} tasks)'
      )
      out[words + late] = reference.metrics
  return out


def _after(run: Run, k: int) -> Mapping[str, float]:
  """Metrics of a run as they were after k tasks."""
  sizes = run.results.get('test_sizes') or None
  return summarise(run.matrix[:k], sizes, measure=run.measure)


def _beside(run: Run, name: str) -> bool:
  return (run.path / 'references' / name / 'results.json').exists()


def _recorded(run: Run, name: str) -> Mapping[str, float]:
  """The final values of a bound in results.json, for a bound whose directory is gone."""
  if not run.done or _beside(run, name):
    return {}
  return (run.results.get('references') or {}).get(name) or {}
