"""`pecft params`."""

import collections
import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pecft_jax.commands.files import find_experiment, load_experiment, made, parse_flags
from pecft_jax.text import count, size


@dataclasses.dataclass(frozen=True)
class ParamsFlags:
  """Flags of `pecft params`."""

  frozen: bool = False
  """List the weights of the backbone, too; their sum is shown in any case."""
  json: bool = False
  """As JSON: a list of arrays, each with name, shape, dtype, role, size and bytes."""
  debug: bool = False
  """Show the whole traceback of an error."""


def params_of_file(path: str, args: Sequence[str], console: Console) -> int:
  function = load_experiment(find_experiment(path))
  values, flags = parse_flags(function, args, f'pecft params {path}', ParamsFlags)
  from pecft_jax.plan import parameters

  experiment = made(function, values)
  rows = parameters(experiment.method, experiment.frozen)
  shown = [row for row in rows if flags.frozen or row.role != 'frozen']
  if flags.json:
    print(json.dumps([row._asdict() for row in shown], indent=1))
    return 0
  table = Table(box=None, padding=(0, 2, 0, 0))
  for title in ('name', 'shape', 'type', 'role'):
    table.add_column(title, overflow='fold')
  table.add_column('bytes', justify='right')
  for row in shown:
    table.add_row(row.name, str(list(row.shape)), row.dtype, row.role, size(row.bytes))
  console.print(table)
  sizes, numbers = collections.Counter(), collections.Counter()
  for row in rows:
    sizes[row.role] += row.bytes
    numbers[row.role] += row.size
  for role in sizes:
    share = f', {100 * numbers[role] / max(numbers["frozen"], 1):.3g} % of the backbone'
    line = f'{role}: {count(numbers[role])} numbers, {size(sizes[role])}'
    console.print(line + (share if role == 'trained' else ''), highlight=False)
  return 0
