"""Which entries fit into a number of bytes."""

from collections.abc import Callable


class Room:
  """A bound on the bytes of named entries, and which of them go where it is full.

  Evaluations read all entries in one order again and again: to drop the one used longest ago would
  then drop each just before it is needed. So entries stay until evaluations go by without them, and
  what does not fit is not taken.
  """

  def __init__(self, limit: float, drop: Callable[[str], object]):
    """Starts empty.

    Args:
      limit: bytes, of all entries together.
      drop: called with the name of each entry that goes.
    """
    self._limit, self._drop = limit, drop
    self._sizes: dict[str, int] = {}
    self._used: dict[str, int] = {}
    self._total, self._turn, self._swept = 0, 0, -1

  def __contains__(self, name: str) -> bool:
    return name in self._sizes

  def turn(self) -> None:
    """A further evaluation begins."""
    self._turn += 1

  def use(self, name: str) -> None:
    """The entry is needed, where there is one."""
    if name in self:
      self._used[name] = self._turn

  def take(self, name: str, size: int) -> bool:
    """Whether an entry of so many bytes is there now; drops entries of earlier evaluations."""
    if name in self:
      return True
    if self._total + size > self._limit and self._swept != self._turn:
      self._swept = self._turn
      # An evaluation that was resumed in the middle needs just some of its entries.
      for old in [each for each, used in self._used.items() if used < self._turn - 2]:
        self.remove(old)
    if self._total + size > self._limit:
      return False
    self._sizes[name] = size
    self._total += size
    self.use(name)
    return True

  def remove(self, name: str) -> None:
    """Drops an entry, if it is there."""
    if name in self:
      self._total -= self._sizes.pop(name)
      del self._used[name]
      self._drop(name)
