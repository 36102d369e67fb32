"""The metrics of Díaz-Rodríguez et al. (2018, arXiv:1810.13166): averages over the matrix."""

from typing import NamedTuple

import numpy as np

from pecft_jax.metrics.matrix import Matrix, several


class DiazRodriguez(NamedTuple):
  """Metrics of Díaz-Rodríguez et al. (2018, arXiv:1810.13166)."""

  accuracy: float  # Mean over all entries on and below the diagonal.
  bwt: float  # Mean of a[i, j] - a[j, j] over i > j.
  remembering: float  # REM = 1 - |min(bwt, 0)|
  positive_bwt: float  # BWT+ = max(bwt, 0)
  fwt: float | None  # Mean over the entries above the diagonal; None where not evaluated.


def diaz_rodriguez(matrix: Matrix) -> DiazRodriguez:
  """Computes the metrics of Díaz-Rodríguez et al. that read the accuracy matrix.

  Args:
    matrix: [k, T], the measure at each time on each task.

  Raises:
    ValueError: for a single finished task.

  >>> round(diaz_rodriguez([[0.9, None], [0.7, 0.8]]).accuracy, 3)
  0.8
  """
  a = several(matrix)
  backward = float((a - np.diag(a))[np.tril_indices(len(a), -1)].mean())
  ahead = a[np.triu_indices(len(a), 1)]
  return DiazRodriguez(
    accuracy=float(a[np.tril_indices(len(a))].mean()),
    bwt=backward,
    remembering=1 - abs(min(backward, 0.0)),
    positive_bwt=max(backward, 0.0),
    fwt=None if np.isnan(ahead).any() else float(ahead.mean()),
  )
