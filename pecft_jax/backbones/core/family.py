"""One kind of model: its functions, names and cards."""

from collections.abc import Callable
from typing import NamedTuple

from pecft_jax.axes import LayerSplit
from pecft_jax.backbones.core.checkpoint import Checkpoint
from pecft_jax.backbones.core.naming import Naming
from pecft_jax.typing import Backbone


class Family(NamedTuple):
  """One kind of model: how it is made, read, written, and named elsewhere.

  A family is a folder with `family.py`, its model, its names and its cards.

  Attributes:
    name: as cards and `Backbone.family` say it; that of its folder.
    factory: `(**architecture) -> Backbone`.
    load: `(path, backbone) -> Checkpoint`.
    save: `(path, backbone, params, head=None) -> sha256` of the file.
    naming: of its layers in the library that its adapters are exchanged with.
    split: of its layers over devices that share one example.
    ranges: entries of a card, one value per channel, that the factory takes
      beside the architecture.
  """

  name: str
  factory: Callable[..., Backbone]
  load: Callable[..., Checkpoint]
  save: Callable[..., str]
  naming: Naming
  split: LayerSplit
  ranges: tuple[str, ...] = ()
