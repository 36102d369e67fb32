"""A test set from data that have none."""

import numpy as np

from pecft_jax.arguments import checked
from pecft_jax.data.counter import bits
from pecft_jax.data.source import Source, select_rows
from pecft_jax.text import shortened


@checked
def held_out(source: Source, share: float = 0.2, *, seed: int = 0) -> tuple[Source, Source]:
  """Holds out a share of a source: (train, test), with no row in both.

  The split is stratified by class, and by domain where there are domains: for each, the share is
  rounded, with at least one row on either side. Both keep the order of the rows.

  Args:
    source: at least two rows of each class (and domain).
    share: of the rows that goes to the test set, between 0 and 1.
    seed: of the choice of rows.

  Raises:
    ValueError: for another share, or a class with a single row.

  >>> import numpy as np
  >>> from pecft_jax import data
  >>> source = data.arrays('mine', np.zeros((10, 8, 8, 1), np.uint8), [0, 1] * 5)
  >>> train, test = data.held_out(source, 0.2)
  >>> train.labels.tolist(), test.labels.tolist()
  ([0, 1, 0, 1, 0, 1, 0, 1], [1, 0])
  """
  if not 0 < share < 1:
    raise ValueError(f'expected a share between 0 and 1, got {share}')
  domains = np.zeros_like(source.labels) if source.domains is None else source.domains
  groups = np.unique(np.stack([source.labels, domains], 1), axis=0).tolist()
  chosen = np.zeros(len(source.labels), bool)
  alone = []
  for label, domain in groups:
    rows = np.flatnonzero((source.labels == label) & (domains == domain))
    if len(rows) < 2:
      of = '' if source.domains is None else f' of domain {source.domain_names[domain]}'
      alone.append(f'{source.class_names[label]}{of}')
      continue
    count = min(max(round(share * len(rows)), 1), len(rows) - 1)
    # Ranks within a group, so that the choice does not depend on other groups.
    drawn = np.argsort(bits(seed, label, domain, np.arange(len(rows))), kind='stable')
    chosen[rows[drawn[:count]]] = True
  if alone:
    raise ValueError(
      f'{source.name!r}: expected at least 2 rows of each class to hold out some, got 1 of '
      f'{shortened(alone, 10)}'
    )
  train, test = (select_rows(source, np.flatnonzero(part)) for part in (~chosen, chosen))
  return train, test
