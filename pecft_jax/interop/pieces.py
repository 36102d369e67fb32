"""A delta as other libraries store it: one adapter for each layer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.peft.weights import Weights, read
from pecft_jax.typing import Delta, Params, PeftTransform


class Piece(NamedTuple):
  """The adapter of one site.

  Attributes:
    path: of the site; of a leaf of the weights where the transform replaces weights.
    leaf: its part of the delta.
    options: name and arguments of the transform that it is of; empty for one of your own.
    probe: `(leaf, {'kernel', 'bias'}) -> Weights`, another leaf merged into other weights.
  """

  path: str
  leaf: Any
  options: Mapping[str, Any]
  probe: Any

  def option(self, name: str) -> Any:
    """An argument of the transform.

    Raises:
      ValueError: where the transform does not tell its arguments.
    """
    if name not in self.options:
      raise ValueError(
        f'{self.path}: the transform does not tell its {name}, which the format needs: expected '
        'one that a factory of pecft_jax.peft made'
      )
    return self.options[name]


def pieces_of(
  peft: PeftTransform, delta: Delta, kinds: Mapping[type, Sequence[str]]
) -> list[Piece]:
  """The adapters of all sites, in the order of the delta.

  Args:
    peft: a transform whose leaves are of these classes, with `at_layers` and in chains.
    delta: of this transform; one slot of a bank.
    kinds: names of transforms, by the class of their leaves; `jax.Array` for weights that a
      transform replaces.

  Raises:
    ValueError: if there are none, or some of another kind.
  """
  found = list(_leaves(delta, (), kinds))
  if not found:
    raise ValueError('the delta names no site: there is nothing to save')
  return [
    Piece(path, leaf, _options(peft.settings, parts), _probe(peft, delta, parts, path))
    for parts, path, leaf in found
  ]


def _leaves(
  node: Any, parts: tuple[str, ...], kinds: Mapping[type, Sequence[str]]
) -> Iterator[tuple[tuple[str, ...], str, Any]]:
  """Names of the parts of chains, path of the site, and leaf."""
  if not isinstance(node, Mapping):
    raise _unknown('one site alone, with no path', kinds)
  for key, value in node.items():
    if isinstance(value, tuple(kinds)):
      if (shape := _of_bank(value)) is not None:
        raise ValueError(
          f'{key} has leading axes {shape}: of a bank, save one slot, take(delta, i)'
        )
      yield parts, key, value
    elif isinstance(value, Mapping):
      yield from _leaves(value, (*parts, key), kinds)
    else:
      raise _unknown(type(value).__name__ if hasattr(value, '_fields') else 'plain arrays', kinds)


def _of_bank(leaf: Any) -> list[int] | None:
  """The shape of the first array, where all arrays have more axes than at one site."""
  axes = getattr(type(leaf), 'AXES', {})
  arrays = {name: getattr(leaf, name) for name in axes if hasattr(getattr(leaf, name), 'ndim')}
  if not arrays or any(array.ndim <= len(axes[name]) for name, array in arrays.items()):
    return None
  return list(next(iter(arrays.values())).shape)


def _unknown(kind: str, kinds: Mapping[type, Sequence[str]]) -> ValueError:
  names = ', '.join(
    name for transforms in dict.fromkeys(map(tuple, kinds.values())) for name in transforms
  )
  return ValueError(
    f'expected a delta of {names}, which huggingface/peft has, too, got {kind}. Other transforms '
    'that merge can be saved as whole models: save_timm or save_llama of peft.merge(delta, params)'
  )


def _options(settings: Mapping[str, Any] | None, parts: tuple[str, ...]) -> Mapping[str, Any]:
  """The settings of the transform that made a leaf."""
  names = list(parts)
  while settings is not None:
    if settings.get('name') == 'at_layers':
      settings = settings['transform']
    elif settings.get('name') == 'chain' and names:
      settings = settings['parts'].get(names.pop(0))
    else:
      return settings
  return {}


def _probe(peft: PeftTransform, delta: Delta, parts: tuple[str, ...], path: str) -> Any:
  """A function that merges one leaf of a transform into the weights of one site."""

  def merged(leaf: Any, node: Mapping[str, jax.Array]) -> Weights:
    assert peft.merge is not None
    small: Delta = {path: leaf}
    levels = [delta]
    for name in parts:
      levels.append(levels[-1][name])
    for level, name in zip(reversed(levels[:-1]), reversed(parts), strict=True):
      small = {**_emptied(level), name: small}
    params: Params = {name: jnp.asarray(array) for name, array in node.items()}
    for key in reversed(path.split('/')):
      params = {key: params}
    return read(peft.merge(small, params), path)

  return merged


def _emptied(node: Mapping[str, Any]) -> dict[str, Any]:
  """A delta without sites, with all parts of chains."""
  return {key: _emptied(value) for key, value in node.items() if isinstance(value, Mapping)}
