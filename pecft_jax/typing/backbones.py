"""Pre-trained models, with their inputs and outputs.

Axis letters: B batch, T tokens (tasks when it leads a bank), D width, C classes.
"""

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from pecft_jax.paths import tree_words
from pecft_jax.typing.arrays import Array, Key, Params
from pecft_jax.typing.sites import SiteSpec


class Features(NamedTuple):
  """Outputs of a backbone."""

  pooled: Array  # [B, D], what a head reads.
  tokens: Array  # [B, T, D] after the final norm; only those computed where `rows` was given.
  taps: dict[str, Any]  # What `watch` took from sites, by `kind:path`.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Below:
  """What the frozen blocks below a block make of a batch: no transform acts in them.

  Attributes:
    tokens: [B, T, D], the input of the block, in the dtype of the computation.
    block: its number, counted from 0; part of the program that is compiled, not an array.
  """

  tokens: Array
  block: int = dataclasses.field(metadata={'static': True})


class Entry(NamedTuple):
  """How a backbone with one stack of blocks is entered above the first one.

  Attributes:
    below: `(params, inputs, block) -> [B, T, D]`, the input of a block without a transform.
    above: parameters and sites after the last block, by the first part of their paths: `norm`.
  """

  below: Callable[[Params, Array, int], Array]
  above: tuple[str, ...] = ()


class InputSpec(Protocol):
  """Input specification of a backbone: shape, dtype and meaning of one example.

  `Images` and `TokenIds` of `pecft_jax.inputs` are such records; you may
  write others.
  """

  @property
  def kind(self) -> str:
    """The kind of input: 'image' or 'tokens', or one of your own."""
    ...

  @property
  def shape(self) -> tuple[int, ...]:
    """Of one example: [H, W, channels] of images, [T] of token ids."""
    ...

  @property
  def dtype(self) -> np.dtype[Any]:
    """In which examples arrive."""
    ...

  @property
  def what(self) -> str:
    """The inputs in words, such as images."""
    ...

  @property
  def values(self) -> str:
    """Meaning of the values, in words, for the record of a run."""
    ...

  @property
  def unit(self) -> str:
    """The unit of throughput, such as images."""
    ...

  @property
  def units(self) -> int:
    """Number of such units in one example."""
    ...

  @property
  def remedy(self) -> str:
    """Advice for examples of another shape, for error messages."""
    ...

  def normalised(self, x: Array) -> Array:
    """A batch of examples as `Backbone.apply` takes it.

    Raises:
      TypeError: for another dtype than the examples have.
    """
    ...


class Backbone(NamedTuple):
  """A pre-trained model as pure functions.

  Attributes:
    name: for reports and error messages.
    init: `(key) -> params`, freshly initialised. Consumes the key.
    apply: `(params, inputs, delta=None, *, peft=None, key=None, rows=None, watch=None)
      -> Features`.
      `inputs` are normalised floats, or token ids. The key is for the
      transform's dropout; None means deterministic. With `rows`, the last block
      computes just that many tokens, and `Features.tokens` holds those: the
      leading ones of a ViT (1: the class token); of a decoder, which takes
      `rows=1` only, the last real token of each text. With `watch`, a function
      `(site, args, out) -> pytree or None`, `Features.taps` holds what it
      returns for the arguments and the output (after the transform) of each site,
      under `kind:path`: `linear:block_3/attn/k`. Sites for which it returns None
      cost nothing. It is called while the pass is traced, and may be
      called more than once for a site. A backbone with an `entry` also takes `below`, a `Below`
      of these inputs: its blocks from that number on are run, and the others are not.
    sites: every insertion point, with its shapes for a batch of one.
    inputs: the input specification.
    width: D of the pooled feature.
    depth: number of blocks, in all of its stacks.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
    family: name of the family that it is of, among `pecft_jax.backbones.FAMILIES`;
      empty for a model of your own.
    entry: how it is entered at a block; None where it cannot be.
  """

  name: str
  init: Callable[[Key], Params]
  apply: Callable[..., Features]
  sites: tuple[SiteSpec, ...]
  inputs: InputSpec
  width: int
  depth: int
  settings: Mapping[str, Any] | None = None
  family: str = ''
  entry: Entry | None = None

  def __repr__(self) -> str:
    """The facts in a line, without sites and settings."""
    return (
      f'Backbone({self.name}, depth={self.depth}, width={self.width}, {len(self.sites)} sites, '
      f'inputs={self.inputs.dtype}{list(self.inputs.shape)})'
    )


class WeightsIdentity(dict[str, Any]):
  """The identity of certain arrays, as JSON; it does not hold for arrays that replace them.

  Attributes:
    source: where to read or make them again, as JSON with keys of `card`, `file` and `random` (a
      seed); not part of the identity. None where that is unknown.
  """

  source: Mapping[str, Any] | None

  def __init__(
    self, values: Mapping[str, Any], params: Params, source: Mapping[str, Any] | None = None
  ):
    super().__init__(values)
    self.source = source
    self._leaves = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]

  def is_of(self, params: Params) -> bool:
    """Whether these are the very arrays that it was made for."""
    leaves = jax.tree.leaves(params)
    same = (known() is leaf for known, leaf in zip(self._leaves, leaves, strict=False))
    return len(leaves) == len(self._leaves) and all(same)


class Pretrained(NamedTuple):
  """A backbone with its weights.

  Attributes:
    backbone: the model.
    params: its weights.
    head: the classifier that came with the weights; None where there is none.
    identity: what a run records about the weights, as JSON, such as
      `backbone_sha256`; a run computes the digest where it is missing, and where weights were
      put in the place of those that a `WeightsIdentity` is of.
  """

  backbone: Backbone
  params: Params
  head: Params | None = None
  identity: Mapping[str, Any] = {}

  def __repr__(self) -> str:
    """The facts in a line, without arrays."""
    head = 'None' if self.head is None else tree_words(self.head)
    return f'Pretrained({self.backbone.name}, params={tree_words(self.params)}, head={head})'
