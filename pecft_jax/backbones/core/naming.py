"""What a backbone's sites are called in the models of other libraries."""

from collections.abc import Callable
from typing import NamedTuple


class Module(NamedTuple):
  """A linear layer of another library, or a part of one."""

  name: str
  third: int | None  # Of the outputs, where q, k and v are one layer; None: all of them.


class Naming(NamedTuple):
  """How another library names the parts of a model.

  Attributes:
    of: `(site path) -> Module`.
    convolutions: sites that are no linear layers there.
    head: name of the classifier.
    model: in words, what a saved adapter can be put on.
  """

  of: Callable[[str], Module]
  convolutions: tuple[str, ...]
  head: str
  model: str
