"""Checkpoint files of other libraries as trees of parameters, and what is known of them."""

import hashlib
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pecft_jax.backbones.core.stacks import stack_blocks, unstack_blocks
from pecft_jax.paths import shortened
from pecft_jax.peft.leaves import inside, stacks_of
from pecft_jax.typing import Backbone, Params


class Checkpoint(NamedTuple):
  """Weights read from a file."""

  params: Params  # Of the backbone.
  head: Params | None  # {'kernel' [D, C], 'bias' [C]} of the classifier in the file, if any.
  sha256: str  # Of the file.


def unstacked(backbone: Backbone, params: Params) -> Params:
  """A backbone's parameters with `block_0`, `block_1`, … in all of its stacks."""
  for stack, layers in stacks_of(backbone.sites).items():
    if 'blocks' in inside(params, stack):
      params = unstack_blocks(params, len(layers), stack)
  return params


def expected(backbone: Backbone) -> Params:
  """Shapes of a backbone's parameters, with `block_0`, `block_1`, … in all of its stacks."""
  return jax.eval_shape(lambda key: unstacked(backbone, backbone.init(key)), _key())


def as_stored(backbone: Backbone, params: Params) -> Params:
  """Parameters with `block_0`, `block_1`, … as the backbone keeps them: stacked where it does."""
  want = jax.eval_shape(backbone.init, _key())
  for stack, layers in stacks_of(backbone.sites).items():
    if 'blocks' in inside(want, stack):
      params = stack_blocks(params, len(layers), stack)
  return params


def _key() -> jax.ShapeDtypeStruct:
  return jax.eval_shape(lambda: jax.random.key(0))


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a safetensors file. Raises ValueError if it is not there or not whole."""
  if not path.is_file():
    raise ValueError(f'no weights file at {path}')
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  try:
    return load_file(str(path))
  except (SafetensorError, OSError, ValueError) as error:
    raise ValueError(f'{path} is not a readable safetensors file (truncated?): {error}') from error


def filled(
  path: pathlib.Path,
  model: str,
  leaves: Sequence[tuple[str, Any]],
  tensors: Mapping[str, np.ndarray],
  name_of: Callable[[str], str],
  convert: Callable[[str, np.ndarray], np.ndarray],
  dtypes: Collection[str],
) -> Params:
  """A tree of our names from tensors of theirs.

  Args:
    path: of the file, for messages.
    model: name of the backbone, for messages.
    leaves: our names, with the shapes expected.
    tensors: by their names.
    name_of: theirs of ours.
    convert: `(our name, their array) -> our array`.
    dtypes: that are allowed.

  Raises:
    ValueError: where the tensors are not just those expected, or one has
      another shape or dtype.
  """
  names = {ours: name_of(ours) for ours, _ in leaves}
  missing = sorted(set(names.values()) - set(tensors))
  unused = sorted(set(tensors) - set(names.values()))
  if missing or unused:
    raise ValueError(
      f'{path} does not hold the weights of {model}: '
      f'missing {shortened(missing)}, not expected {shortened(unused)}'
    )
  params: Params = {}
  for ours, leaf in leaves:
    array = tensors[names[ours]]
    if str(array.dtype) not in dtypes:
      expected = ' or '.join(dtypes)
      raise ValueError(f'{path}: {names[ours]} has dtype {array.dtype}, expected {expected}')
    array = convert(ours, array) if array.ndim else array
    if array.shape != leaf.shape:
      raise ValueError(
        f'{path}: {names[ours]} gives shape {array.shape} for {ours}, {model} expects {leaf.shape}'
      )
    _put(params, ours.split('/'), np.ascontiguousarray(array))
  return params


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
  for key in keys[:-1]:
    tree = tree.setdefault(key, {})
  tree[keys[-1]] = value


def sha256_of(path: str | pathlib.Path) -> str:
  """Hex digest of a file."""
  digest = hashlib.sha256()
  with open(path, 'rb') as file:
    while chunk := file.read(1 << 20):
      digest.update(chunk)
  return digest.hexdigest()
