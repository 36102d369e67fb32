"""Time left of a run, from what was measured of each kind of batch."""

from collections.abc import Mapping

# Measured batches before an estimate: the first of each kind, which compiles, is none.
_ENOUGH = 4


class Pace:
  """Seconds that each kind of batch takes.

  The time until the first batch of a kind is known has compilation in it, and is left out. Devices
  compute behind the host, so what is measured counts once results have arrived.

  >>> pace = Pace()
  >>> for step, seconds in enumerate([20.0, 20.1, 20.2, 20.3, 20.4]):
  ...   pace.told('train', step + 1, 10.0 * (step + 1), seconds, settled=True)
  >>> round(pace.left({'train': 50.0}), 3)
  0.5
  """

  def __init__(self) -> None:
    """Begins without a measurement."""
    self._last = 0.0
    self._at: dict[str, tuple[int, float]] = {}
    self._open: dict[str, tuple[int, float, float]] = {}
    self._known: dict[str, tuple[int, float, float]] = {}

  def told(self, kind: str, batches: int, cost: float, now: float, *, settled: bool) -> None:
    """Takes how much of a kind is done.

    Args:
      kind: of the batches since the last call.
      batches: of that kind that are done, in the whole run.
      cost: of these batches, in any unit that all kinds share.
      now: in seconds.
      settled: whether the results of all batches so far have arrived.
    """
    seconds, self._last = now - self._last, now
    if kind in self._at:
      before, spent = self._at[kind]
      number, took, of = self._open.get(kind, (0, 0.0, 0.0))
      self._open[kind] = (number + batches - before, took + seconds, of + cost - spent)
      if settled:
        self._known[kind] = self._open[kind]
    self._at[kind] = (batches, cost)

  def left(self, costs: Mapping[str, float]) -> float | None:
    """Seconds for what is left.

    Kinds that were not measured yet take as long per cost as all that was measured.

    Args:
      costs: that are left, by kind.

    Returns:
      None before enough was measured.
    """
    if sum(number for number, _, _ in self._known.values()) < _ENOUGH:
      return None
    rates = {kind: took / of for kind, (_, took, of) in self._known.items() if of > 0}
    spent = sum(of for _, _, of in self._known.values())
    if not spent:
      return None
    mean = sum(took for _, took, _ in self._known.values()) / spent
    return sum(cost * rates.get(kind, mean) for kind, cost in costs.items())
