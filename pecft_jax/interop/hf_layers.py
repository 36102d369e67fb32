"""Layers of the other library from sites of this one, and back.

timm keeps q, k and v in one layer of 3 d_out outputs. Additive updates of such a layer are those
of the three sites side by side: their factors are joined on the axis of the rank, and the outputs
that a site does not have are zeros.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pecft_jax.interop.hf_type import Found, Layer, Place

T = TypeVar('T')


class Factors(NamedTuple):
  """A product A B of a layer."""

  a: np.ndarray  # [d_in, R]
  b: np.ndarray  # [R, d_out], of the whole layer.


def array(leaf: Any) -> np.ndarray:
  """As float32."""
  return np.asarray(leaf, np.float32)


def joined(layer: Layer, factors: Callable[[Any], tuple[Any, Any]]) -> Factors:
  """The products of all parts of a layer as one, ranks in the order of the parts.

  Args:
    layer: with one part or more.
    factors: `(piece) -> (a [d_in, r], b [r, d_out])`
  """
  pairs: list[tuple[int, Any, Any]] = [
    (part.third or 0, *map(array, factors(part.piece))) for part in layer.parts
  ]
  b = np.zeros((sum(len(b) for _, _, b in pairs), layer.thirds, pairs[0][2].shape[1]), np.float32)
  row = 0
  for third, _, own in pairs:
    b[row : row + len(own), third] = own
    row += len(own)
  return Factors(np.concatenate([a for _, a, _ in pairs], 1), b.reshape(len(b), -1))


def joined_once(layer: Layer, factors: Callable[[Any], tuple[Any, Any]]) -> Factors:
  """As `joined`, without repeating the A that all parts have alike, as those of one file do."""
  first, *others = (array(factors(part.piece)[0]) for part in layer.parts)
  several = len({part.third for part in layer.parts}) < len(layer.parts)
  if several or not all(np.array_equal(first, other) for other in others):
    return joined(layer, factors)
  return Factors(first, side_by_side(layer, lambda piece: factors(piece)[1], 0.0))


def side_by_side(layer: Layer, rows: Callable[[Any], Any], filler: float) -> np.ndarray:
  """An array of each part along its last axis, [..., d_out] of the whole layer.

  Args:
    layer: with at most one part for each third.
    rows: `(piece) -> [..., d_out of the site]`
    filler: where q, k or v is not adapted.
  """
  check_one_each(layer)
  own = {part.third: array(rows(part.piece)) for part in layer.parts}
  if None in own:
    return own[None]
  empty = np.full_like(next(iter(own.values())), filler)
  return np.concatenate([own.get(third, empty) for third in range(3)], -1)


def check_one_each(layer: Layer) -> None:
  """Raises ValueError where two adapters act on one site."""
  if len({part.third for part in layer.parts}) < len(layer.parts):
    kind = type(layer.leaf).__name__.removesuffix('Delta')
    raise ValueError(f'two {kind} adapters act on {layer.name}: huggingface/peft knows one a layer')


def only(layer: Layer, why: str) -> Any:
  """The piece of a layer that is one site.

  Raises:
    ValueError: for q, k and v in one layer, and two adapters of a site; says why.
  """
  check_one_each(layer)
  if layer.thirds > 1:
    raise ValueError(f'{layer.name} is q, k and v in one layer: {why}')
  return layer.parts[0].piece


def alike(layer: Layer, what: str, of: Callable[[Any], Any]) -> np.ndarray:
  """The array of a layer whose inputs are changed, which all of q, k and v must do alike.

  Args:
    layer: with at most one part for each third.
    what: is done with the inputs.
    of: `(piece) -> array`

  Raises:
    ValueError: where they differ, or not all of them are adapted.
  """
  check_one_each(layer)
  arrays = [array(of(part.piece)) for part in layer.parts]
  if len(arrays) < layer.thirds or any(not np.array_equal(arrays[0], each) for each in arrays):
    raise ValueError(
      f'{layer.name} is q, k and v in one layer, with one {what} of its inputs: expected the same '
      'at all three'
    )
  return arrays[0]


def same(values: Iterable[tuple[str, Any]], what: str) -> Any:
  """The one value of all sites.

  Raises:
    ValueError: if they differ; huggingface/peft has one for an adapter.
  """
  found = dict(values)
  if len(set(found.values())) > 1:
    raise ValueError(f'huggingface/peft has one {what} for all layers, got {sorted(found.items())}')
  return next(iter(found.values()))


def most_frequent(values: Mapping[str, T]) -> tuple[T, dict[str, T]]:
  """The most frequent value, and those of the other names: `r` and `rank_pattern`."""
  most = collections.Counter(values.values()).most_common(1)[0][0]
  return most, {name: value for name, value in values.items() if value != most}


def cuts(name: str, places: Sequence[Place], width: int) -> list[tuple[Place, slice]]:
  """Each site of a layer with its part of the outputs.

  Raises:
    ValueError: for q, k and v in one layer whose outputs are not three times as many.
  """
  if places[0].third is None:
    return [(place, slice(width)) for place in places]
  if width % 3:
    raise ValueError(f'{name} has {width} outputs: expected as many for each of q, k and v')
  each = width // 3
  return [(p, slice((p.third or 0) * each, ((p.third or 0) + 1) * each)) for p in places]


def split(
  places: Sequence[tuple[Place, slice]], b: np.ndarray
) -> Iterator[tuple[str, np.ndarray, slice]]:
  """The sites of a product A B, each with its ranks [R] bool and its columns of B [R, d_out].

  Where not all of q, k and v were adapted, the rows of the others are zeros; a site without any
  rank is left out. All ranks are those of each site where B is zeros throughout.
  """
  for place, cut in places:
    rows = np.asarray(b[:, cut].any(1) if b.any() else np.ones(len(b), bool))
    if rows.any():
      yield place.path, rows, cut


def each_layer(
  found: Found, expected: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, list[Any]]]:
  """The tensors of each layer, in the order expected; None for optional ones that are absent.

  Raises:
    ValueError: if one is missing, or others are there.
  """
  for name, tensors in found.layers.items():
    yield name, exactly(name, tensors, expected, found.config, optional)


def exactly(
  name: str,
  tensors: Mapping[str, np.ndarray],
  expected: Sequence[str],
  config: Mapping[str, Any],
  optional: Sequence[str] = (),
) -> list[Any]:
  """The tensors of a layer, in the order expected; no others may be there."""
  if not set(expected) <= tensors.keys() <= {*expected, *optional}:
    kind = f'use_dora={config["use_dora"]}' if config.get('use_dora') else config['peft_type']
    raise ValueError(
      f'{name}: expected {" and ".join(expected)} ({kind}), got {" and ".join(sorted(tensors))}'
    )
  return [tensors.get(part) for part in (*expected, *optional)]


def of_shape(name: str, tensor: np.ndarray, shape: Sequence[int | None]) -> np.ndarray:
  """Checks a shape; None stands for any size."""
  fits = len(shape) == tensor.ndim and all(
    want is None or want == size for want, size in zip(shape, tensor.shape, strict=True)
  )
  if not fits:
    words = ['any' if want is None else str(want) for want in shape]
    raise ValueError(f'{name}: expected shape [{", ".join(words)}], got {list(tensor.shape)}')
  return tensor


def of_length(name: str, vector: np.ndarray, length: int) -> np.ndarray:
  """Checks that a tensor is a vector of a length."""
  if vector.shape != (length,):
    raise ValueError(f'{name}: expected a vector of {length}, got shape {vector.shape}')
  return vector
