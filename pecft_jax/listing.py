"""What there is, by name: for `pecft list` and for tables."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pecft_jax.about import about_of
from pecft_jax.backbones.card import cards
from pecft_jax.benchmarks import benchmarks
from pecft_jax.continual import METHODS, WRAPPERS
from pecft_jax.paths import unknown
from pecft_jax.peft import PEFTS
from pecft_jax.presets import presets


def listing(kind: str) -> dict[str, dict[str, Any]]:
  """What there is of one kind, by name: a summary and further facts, as JSON.

  Args:
    kind: `peft`, `methods` (wrappers, too), `presets`, `benchmarks` or `backbones`.

  Raises:
    ValueError: for any other kind; suggests the nearest.

  >>> listing('methods')['ewc']['kind'], listing('peft')['lora']['papers'][0]['arxiv']
  ('wrapper', '2106.09685')
  """
  kinds: Mapping[str, Callable[[], dict[str, dict[str, Any]]]] = {
    'peft': lambda: _described(PEFTS),
    'methods': lambda: _described(METHODS) | _described(WRAPPERS),
    'presets': lambda: {name: preset.as_json() for name, preset in presets().items()},
    'benchmarks': lambda: {name: {'summary': line} for name, line in benchmarks().items()},
    'backbones': lambda: {name: {'summary': card.summary} for name, card in cards().items()},
  }
  if kind not in kinds:
    raise unknown('kind of thing to list', kind, kinds)
  return kinds[kind]()


def table(kind: str) -> str:
  """A listing as a table of Markdown: family, name, summary, papers; families together.

  Args:
    kind: `peft` or `methods`; wrappers come behind the methods.

  Raises:
    ValueError: for another kind; suggests the nearest.

  >>> print(table('peft').splitlines()[0])
  | family | name | what it does | arXiv |
  """
  kinds = {'peft': ('transform',), 'methods': ('method', 'wrapper')}
  if kind not in kinds:
    raise unknown('table', kind, kinds)
  found = listing(kind)
  # Families in order, wrappers last; within one the order is that of the listing.
  at = lambda name: (kinds[kind].index(found[name]['kind']), found[name]['family'])
  rows, before = ['| family | name | what it does | arXiv |', '|---|---|---|---|'], None
  for name in sorted(found, key=at):
    each = found[name]
    family = '' if each['family'] == before else each['family']
    before = each['family']
    links = ', '.join(_link(paper['arxiv']) for paper in each['papers'])
    rows.append(f'| {family} | `{name}` | {each["summary"]} | {links} |')
  return '\n'.join(rows)


def with_tables(page: str) -> str:
  """A page of Markdown whose tables are those of the library now.

  A table stands between the comments `<!-- table: KIND -->`, with KIND as of `table`, and
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


def _described(registry: Mapping[str, Callable[..., Any]]) -> dict[str, dict[str, Any]]:
  return {name: about_of(factory).as_json() for name, factory in registry.items()}
