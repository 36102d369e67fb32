"""What this library knows of one type of adapter of huggingface/peft.

Each type is an `HfType` in a file of its own in `types/`, and a line in `hf_types.py`. Names of
layers, files, the classifier and entries of the configuration that all types share are handled
around it, in `hf_peft_save.py` and `hf_peft_load.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pecft_jax.interop.modules import Naming
from pecft_jax.interop.pieces import Piece
from pecft_jax.typing import Backbone, Delta, Params, PeftTransform

# Where a file comes from, and what is adapted, which is known from the tensors.
BOOKKEEPING = (
  'task_type', 'peft_type', 'auto_mapping', 'peft_version', 'base_model_name_or_path', 'revision',
  'inference_mode', 'target_modules', 'exclude_modules', 'modules_to_save', 'layers_to_transform',
  'layers_pattern',
)  # fmt: skip
PLAIN = ('none', None)  # Values of `bias`: others replace biases of the base.
OFF = (False, None)
LAYERED = ('linear', 'norm', 'table')  # Kinds of what is a layer there, with a name.


class Keys(NamedTuple):
  """The allow-list of a type: any other entry is refused.

  Attributes:
    read: entries that the type reads, and checks itself.
    free: entries without effect on the function that was trained; those of `BOOKKEEPING` besides.
    only: the values that leave the function as it is read here, the first being peft's default.
    why: reasons for the limits in `only`, shown with the refusal.
  """

  read: tuple[str, ...] = ()
  free: tuple[str, ...] = ()
  only: Mapping[str, tuple[Any, ...]] = {}
  why: Mapping[str, str] = {}

  def known(self) -> set[str]:
    """All entries that do not make an adapter unreadable by being there."""
    return {*BOOKKEEPING, *self.read, *self.free, *self.only}


class Part(NamedTuple):
  """The adapter of one site, as a part of a layer."""

  third: int | None  # Of the layer's outputs, where q, k and v are one layer; None: all of them.
  piece: Piece


class Layer(NamedTuple):
  """A layer of the other library, with the adapters that are to be written there."""

  name: str
  parts: tuple[Part, ...]

  @property
  def leaf(self) -> Any:
    """Of the first part."""
    return self.parts[0].piece.leaf

  @property
  def thirds(self) -> int:
    """3 where q, k and v are one layer, otherwise 1."""
    return 1 if self.parts[0].third is None else 3


class Model(NamedTuple):
  """What an adapter belongs to.

  Attributes:
    backbone: here.
    naming: of its layers there.
    params: the weights; None where they are not at hand, when an adapter is read.
  """

  backbone: Backbone
  naming: Naming
  params: Params | None


class Written(NamedTuple):
  """What a type writes.

  Attributes:
    tensors: by name, without `base_model.model.`.
    config: entries of the configuration, `peft_type` aside.
    shared: tensors that all layers share, without `base_model.`.
    bare: tensors with no prefix at all.
  """

  tensors: Mapping[str, np.ndarray]
  config: Mapping[str, Any]
  shared: Mapping[str, np.ndarray] = {}
  bare: Mapping[str, np.ndarray] = {}


class Place(NamedTuple):
  """A site, or a table, as a part of a layer of the other library."""

  third: int | None
  path: str
  shape: tuple[int, ...]  # Of its weight here: [d_in, d_out], [D] of a norm, [V, D] of a table.


class Found(NamedTuple):
  """An adapter that is to be read.

  Attributes:
    config: its configuration, checked against the type's `Keys`.
    layers: float32 tensors by layer and suffix.
    places: the sites of each of these layers.
    shared: tensors that all layers share, or that have no prefix, by name.
  """

  config: Mapping[str, Any]
  layers: Mapping[str, Mapping[str, np.ndarray]]
  places: Mapping[str, Sequence[Place]]
  shared: Mapping[str, np.ndarray]


class HfType(NamedTuple):
  """A type of adapter of huggingface/peft.

  Attributes:
    peft_type: its name in `adapter_config.json`.
    transforms: names of the transforms of this library that it stands for.
    leaves: classes of their deltas at a site.
    keys: the allow-list of its configuration.
    suffixes: regular expression of the tensors of a layer.
    write: `(layers, model) -> Written`; raises ValueError for what has no form there.
    read: `(found, model) -> (transform, delta)`; raises ValueError for tensors that do not fit.
    kind: of the sites that it adapts; 'table' of an embedding, which is no site.
    replaces: whether its delta has what is put in place of weights by their path
      (`block_0/ln1/scale`), and not leaves by site.
    shared: regular expression of the tensors that all layers share, without `base_model.`, or that
      have no prefix; None where there are none.
    integers: suffixes of the tensors that are whole numbers.
    classifier: whether a classifier is saved along.
    ranked: names of leaves' fields with the axis of the rank, which may differ between sites.
  """

  peft_type: str
  transforms: tuple[str, ...]
  leaves: tuple[type, ...]
  keys: Keys
  suffixes: str
  write: Callable[[Sequence[Layer], Model], Written]
  read: Callable[[Found, Model], tuple[PeftTransform, Delta]]
  kind: str = 'linear'
  replaces: bool = False
  shared: str | None = None
  integers: tuple[str, ...] = ()
  classifier: bool = True
  ranked: Mapping[str, int] = {}
