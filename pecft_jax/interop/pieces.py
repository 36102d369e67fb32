"""A delta as other libraries store it: one adapter for each linear layer."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from pecft_jax.peft.lowrank.dora import DoraDelta
from pecft_jax.peft.lowrank.lora import LoraDelta
from pecft_jax.peft.scaling.ia3 import Ia3Delta
from pecft_jax.peft.weights import read
from pecft_jax.typing import Delta, Params, PeftTransform

KINDS = (LoraDelta, DoraDelta, Ia3Delta)


class Piece(NamedTuple):
  """The adapter of one site."""

  path: str
  leaf: Any  # Of one of `KINDS`.
  scale: float  # Of the product A B; 1 for (IA)^3.
  inputs: bool  # Whether (IA)^3 scales the inputs of its layer, not the outputs.


def pieces_of(peft: PeftTransform, delta: Delta) -> list[Piece]:
  """The adapters of all sites, in the order of the delta.

  Args:
    peft: `lora`, `rslora`, `dora` or `ia3`, with `at_layers` and in chains.
    delta: of this transform; one slot of a bank.

  Raises:
    ValueError: if there are none, or some of another kind.
  """
  found = list(_leaves(delta, ()))
  if not found:
    raise ValueError('the delta names no site: there is nothing to save')
  return [
    Piece(
      path,
      leaf,
      _scale(peft, delta, parts, path, leaf),
      isinstance(leaf, Ia3Delta) and _inputs(peft, delta, parts, path),
    )
    for parts, path, leaf in found
  ]


def _leaves(node: Any, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, Any]]:
  """Names of the parts of chains, path of the site, and leaf."""
  if not isinstance(node, Mapping):
    raise _unknown('one site alone, with no path')
  for key, value in node.items():
    if isinstance(value, KINDS):
      if value[0].ndim != (1 if isinstance(value, Ia3Delta) else 2):
        raise ValueError(
          f'{key} has leading axes {list(value[0].shape)}: of a bank, save one slot, take(delta, i)'
        )
      yield parts, key, value
    elif isinstance(value, Mapping):
      yield from _leaves(value, (*parts, key))
    else:
      raise _unknown(type(value).__name__ if hasattr(value, '_fields') else 'plain arrays')


def _unknown(kind: str) -> ValueError:
  return ValueError(
    f'expected a delta of lora, rslora, dora or ia3, got {kind}. Other transforms that merge can '
    'be saved as whole models: save_timm or save_llama of peft.merge(delta, params)'
  )


def _scale(peft, delta, parts, path, leaf) -> float:
  """The scale of A B, measured by merging a tiny adapter.

  Transforms do not expose it. With A B = [[1], [0]] a weight [[0], [1]]
  becomes [[scale], [1]], in DoRA times a norm.
  """
  if isinstance(leaf, Ia3Delta):
    return 1.0
  rank = leaf.a.shape[1]
  a, b = jnp.zeros((2, rank)).at[0, 0].set(1), jnp.zeros((rank, 1)).at[0, 0].set(1)
  tiny = LoraDelta(a, b) if isinstance(leaf, LoraDelta) else DoraDelta(a, b, jnp.ones(1))
  weight = jnp.asarray([[0.0], [1.0]])
  merged = _merged(peft, delta, parts, path, tiny, {'kernel': weight})
  return float(merged.main[0, 0] / merged.main[1, 0])


def _inputs(peft, delta, parts, path) -> bool:
  """Whether a factor leaves the bias alone, which belongs to the outputs."""
  node = {'kernel': jnp.ones((1, 1)), 'bias': jnp.ones(1)}
  merged = _merged(peft, delta, parts, path, Ia3Delta(jnp.full(1, 2.0)), node)
  return float(merged.bias[0]) == 1.0


def _merged(peft, delta, parts, path, leaf, node) -> Any:
  """The weights of one site after a merge of one leaf."""
  small: Delta = {path: leaf}
  levels = [delta]
  for name in parts:
    levels.append(levels[-1][name])
  for level, name in zip(reversed(levels[:-1]), reversed(parts), strict=True):
    small = {**_emptied(level), name: small}
  params: Params = node
  for key in reversed(path.split('/')):
    params = {key: params}
  return read(peft.merge(small, params), path)


def _emptied(node: Mapping[str, Any]) -> dict[str, Any]:
  """A delta without sites, with all parts of chains."""
  return {key: _emptied(value) for key, value in node.items() if isinstance(value, Mapping)}
