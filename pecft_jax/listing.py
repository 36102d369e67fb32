"""Listings by name, for `pecft list` and for tables.

Each kind is imported only when it is listed: only backbones need flax, and benchmarks need no jax.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pecft_jax.text import unknown

Entries = dict[str, dict[str, Any]]


def listing(kind: str) -> Entries:
  """The entries of one kind, by name: a summary and further facts, as JSON.

  Args:
    kind: `peft`, `heads`, `methods` (wrappers, too), `presets`, `benchmarks` or `backbones`.

  Raises:
    ValueError: for any other kind; suggests the nearest.

  >>> listing('methods')['ewc']['kind'], listing('peft')['lora']['papers'][0]['arxiv']
  ('wrapper', '2106.09685')
  """
  if kind not in _KINDS:
    raise unknown('kind of thing to list', kind, _KINDS)
  return _KINDS[kind]()


def table(kind: str) -> str:
  """A listing as a Markdown table, one family after the other, wrappers after the methods.

  Args:
    kind: `peft`, `heads` or `methods`: family, name, summary, papers; `peft_names` or
      `method_names`: the names of each family; or `costs`: what each method needs and carries from
      task to task, and its forward passes per prediction; `switches`: options for known faults of
      published codes; `departures`: where the library differs from the source of a preset.

  Raises:
    ValueError: for another kind; suggests the nearest.

  >>> print(table('peft').splitlines()[0])
  | family | name | what it does | arXiv |
  >>> print(table('costs').splitlines()[0])
  | method | carries | passes | needs |
  >>> '[`lora`](https://arxiv.org/abs/2106.09685)' in table('peft_names')
  True
  """
  tables = {
    'peft': ('peft', ('family', 'name', 'what it does', 'arXiv'), _sources),
    'heads': ('heads', ('family', 'name', 'what it does', 'arXiv'), _sources),
    'methods': ('methods', ('family', 'name', 'what it does', 'arXiv'), _sources),
    'costs': ('methods', ('method', 'carries', 'passes', 'needs'), _costs),
    'peft_names': ('peft', ('family', 'names'), None),
    'method_names': ('methods', ('family', 'names'), None),
  }
  if kind in _OWN_TABLES:
    return _rows(*_OWN_TABLES[kind]())
  if kind not in tables:
    raise unknown('table', kind, [*tables, *_OWN_TABLES])
  of, titles, cells = tables[kind]
  found = listing(of)
  # Families in order, wrappers last; within one the order is that of the listing.
  at = lambda name: (found[name]['kind'] == 'wrapper', found[name]['family'])
  rows, before = [titles, ('---',) * len(titles)], None
  names = sorted(found, key=at)
  if cells is None:
    for (_, family), group in itertools.groupby(names, at):
      rows.append((family, ', '.join(_linked(name, found[name]) for name in group)))
  else:
    for name in names:
      rows.append(cells(name, found[name], before))
      before = found[name]['family']
  return _rows(*rows)


def _rows(*rows: Sequence[str]) -> str:
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _linked(name: str, each: dict[str, Any]) -> str:
  papers = each['papers']
  return f'[`{name}`](https://arxiv.org/abs/{papers[0]["arxiv"]})' if papers else f'`{name}`'


def _sources(name: str, each: dict[str, Any], before: str | None) -> tuple[str, ...]:
  family = '' if each['family'] == before else each['family']
  links = ', '.join(_link(paper['arxiv']) for paper in each['papers'])
  return family, f'`{name}`', each['summary'], links


def _costs(name: str, each: dict[str, Any], before: str | None) -> tuple[str, ...]:
  del before
  return f'`{name}`', each['carries'], each['passes'], ', '.join(each['needs'])


def with_tables(page: str) -> str:
  """A Markdown page with its tables brought up to date.

  A table is between the comments `<!-- table: KIND -->`, with KIND as in `table`, and
  `<!-- end of table -->`.

  Raises:
    ValueError: for another kind.

  >>> page = with_tables('<!-- table: peft -->old<!-- end of table -->')
  >>> page.count('`lora`'), 'old' in page
  (1, False)
  """
  within = r'(<!-- table: (\w+) -->).*?(<!-- end of table -->)'
  new = lambda found: f'{found[1]}\n{table(found[2])}\n{found[3]}'
  return re.sub(within, new, page, flags=re.DOTALL)


def _link(arxiv: str) -> str:
  return f'[{arxiv}](https://arxiv.org/abs/{arxiv})'


def _described(registry: Mapping[str, Callable[..., Any]]) -> Entries:
  from pecft_jax.about import about_of

  return {name: about_of(factory).as_json() for name, factory in registry.items()}


def _peft() -> Entries:
  from pecft_jax.peft import PEFTS

  return _described(PEFTS)


def _heads() -> Entries:
  from pecft_jax.heads import HEADS

  return _described(HEADS)


def _methods() -> Entries:
  from pecft_jax.continual import METHODS, WRAPPERS

  return _described(METHODS) | _described(WRAPPERS)


def _presets() -> Entries:
  from pecft_jax.presets import presets

  return {name: preset.as_json() for name, preset in presets().items()}


def _benchmarks() -> Entries:
  from pecft_jax.benchmarks import benchmarks

  return {name: {'summary': line} for name, line in benchmarks().items()}


def _backbones() -> Entries:
  from pecft_jax.backbones.card import cards

  return {name: {'summary': card.summary} for name, card in cards().items()}


def _switches() -> list[Sequence[str]]:
  from pecft_jax.about import about_of
  from pecft_jax.catalog import REGISTRIES

  found: list[Sequence[str]] = [('option', 'published value', 'what the code does then', 'where')]
  found.append(('---',) * 4)
  for registry in REGISTRIES.values():
    for name, factory in registry.items():
      for each in about_of(factory).switches:
        value = f'`{name}.{each.option}={each.published}`'
        found.append((f'`{name}.{each.option}`', value, each.what, each.where))
  return found


def _departures() -> list[Sequence[str]]:
  from pecft_jax.presets import presets

  found = {name: '; '.join(each.departs) for name, each in presets().items()}
  rows = [(f'`{name}`', words) for name, words in found.items() if words]
  return [('preset', 'where this library differs'), ('---', '---'), *rows]


_OWN_TABLES: Mapping[str, Callable[[], list[Sequence[str]]]] = {
  'switches': _switches,
  'departures': _departures,
}
_KINDS: Mapping[str, Callable[[], Entries]] = {
  'peft': _peft,
  'heads': _heads,
  'methods': _methods,
  'presets': _presets,
  'benchmarks': _benchmarks,
  'backbones': _backbones,
}
