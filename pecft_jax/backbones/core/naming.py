"""Names of a backbone's sites in the models of other libraries."""

from collections.abc import Callable
from typing import NamedTuple


class Module(NamedTuple):
  """A linear layer of another library, or a part of one."""

  name: str
  third: int | None  # Of the outputs, where q, k and v are one layer; None: all of them.


class Naming(NamedTuple):
  """Names of the parts of a model in another library.

  Attributes:
    of: `(site path) -> Module`.
    convolutions: sites that are convolutions there, not linear layers.
    head: name of the classifier.
    model: in words, the models that a saved adapter fits.
  """

  of: Callable[[str], Module]
  convolutions: tuple[str, ...]
  head: str
  model: str
