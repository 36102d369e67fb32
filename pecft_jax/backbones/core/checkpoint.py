"""Checkpoint files of other libraries as trees of parameters."""

import hashlib
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pecft_jax.backbones.core.finite import check_finite
from pecft_jax.backbones.core.stacks import stack_blocks, unstack_blocks
from pecft_jax.paths import shortened
from pecft_jax.peft.leaves import inside, stacks_of
from pecft_jax.typing import Backbone, Params

# Dtypes of safetensors, as numpy and ml_dtypes call them. Weights are of the first three.
_DTYPES = (
  'F32', 'BF16', 'F16', 'F64', 'I64', 'I32', 'I16', 'I8', 'U64', 'U32', 'U16', 'U8', 'BOOL', 'C64',
)  # fmt: skip


# How files of `torch.save` begin: as an archive, and as the bare pickle of old versions.
_TORCH = (b'PK\x03\x04', b'\x80\x02\x8a\x0a')


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
  shapes = jax.eval_shape(backbone.init, _key())
  return jax.eval_shape(lambda params: unstacked(backbone, params), shapes)


def as_stored(backbone: Backbone, params: Params) -> Params:
  """Parameters with `block_0`, `block_1`, … in the backbone's own layout, stacked or not."""
  want = jax.eval_shape(backbone.init, _key())
  for stack, layers in stacks_of(backbone.sites).items():
    if 'blocks' in inside(want, stack):
      params = stack_blocks(params, len(layers), stack)
  return params


def _key() -> jax.ShapeDtypeStruct:
  return jax.eval_shape(lambda: jax.random.key(0))


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a safetensors file.

  Raises:
    ValueError: if it is not there or not whole, or a tensor has a dtype that numpy cannot hold,
      such as those of 8 bits and less. Of a file of `torch.save` it says how it is converted.
  """
  if not path.is_file():
    raise ValueError(f'no weights file at {path}')
  _check_no_pickle(path)
  from safetensors import SafetensorError, safe_open
  from safetensors.numpy import load_file

  try:
    with safe_open(str(path), framework='numpy') as file:
      for name in file.keys():  # noqa: SIM118 -- it is no mapping.
        dtype = str(file.get_slice(name).get_dtype())
        if dtype not in _DTYPES:
          raise ValueError(
            f'{path}: {name} has dtype {dtype}, expected {" or ".join(_DTYPES[:3])}: convert '
            'quantised weights to one of these first'
          )
    return load_file(str(path))
  except (SafetensorError, OSError) as error:
    raise ValueError(f'{path} is not a readable safetensors file (truncated?): {error}') from error


def _check_no_pickle(path: pathlib.Path) -> None:
  """Raises ValueError for a file of `torch.save`, which is a pickle and may run code when read."""
  with open(path, 'rb') as file:
    if not file.read(4).startswith(_TORCH):
      return
  new = str(path.with_suffix('.safetensors'))
  raise ValueError(
    f'{path} is a file of torch.save, which is not read since it may hold code; expected '
    f'safetensors. Where torch is installed, this converts it: import torch, safetensors.torch; '
    f'safetensors.torch.save_file(torch.load({str(path)!r}, weights_only=True), {new!r}), '
    "with ['model'] or ['state_dict'] behind torch.load(...) where it holds more than weights"
  )


def filled(
  path: pathlib.Path,
  model: str,
  leaves: Sequence[tuple[str, Any]],
  tensors: Mapping[str, np.ndarray],
  name_of: Callable[[str], str],
  convert: Callable[[str, np.ndarray], np.ndarray],
  dtypes: Collection[str],
) -> Params:
  """A tree of this library's names from another library's tensors.

  Args:
    path: of the file, for messages.
    model: name of the backbone, for messages.
    leaves: this library's names, with the shapes expected.
    tensors: by the other library's names.
    name_of: `(our name) -> their name`.
    convert: `(our name, their array) -> our array`.
    dtypes: that are allowed.

  Raises:
    ValueError: where tensors are missing or unexpected, or one has
      another shape or dtype, or holds NaN or an infinity.
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
    _check_dtype(path, names[ours], array, dtypes)
    check_finite(f'{path}: {names[ours]}', array)
    array = convert(ours, array) if array.ndim else array
    if array.shape != leaf.shape:
      raise ValueError(
        f'{path}: {names[ours]} gives shape {array.shape} for {ours}, {model} expects {leaf.shape}'
      )
    _put(params, ours.split('/'), np.ascontiguousarray(array))
  return params


def classifier(
  path: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  names: Sequence[str],
  width: int,
  dtypes: Collection[str],
) -> Params | None:
  """The head of a model: 'kernel' [D, C], and 'bias' [C] where `names` has two.

  Args:
    path: of the file, for messages.
    tensors: of the head alone, by their names.
    names: of the weight [C, D], and of the bias.
    width: D.
    dtypes: that are allowed.

  Returns:
    None where there are no tensors.

  Raises:
    ValueError: where one is missing, or has another shape or dtype, or holds NaN or an infinity.
  """
  if not tensors:
    return None
  if missing := sorted(set(names) - set(tensors)):
    raise ValueError(f'{path} has {shortened(sorted(tensors))} of the head, missing {missing}')
  classes = len(tensors[names[0]]) if tensors[names[0]].ndim else 0
  for name, shape in zip(names, ((classes, width), (classes,)), strict=False):
    tensor = tensors[name]
    if tensor.shape != shape or not classes:
      expected = '[classes, width]' if name == names[0] else '[classes]'
      raise ValueError(
        f'{path}: {name} has shape {list(tensor.shape)}, expected {expected} with width {width}'
      )
    _check_dtype(path, name, tensor, dtypes)
    check_finite(f'{path}: {name}', tensor)
  kernel, *bias = (tensors[name] for name in names)
  return {'kernel': kernel.T, **({'bias': bias[0]} if bias else {})}


def _check_dtype(
  path: pathlib.Path, name: str, tensor: np.ndarray, dtypes: Collection[str]
) -> None:
  if str(tensor.dtype) not in dtypes:
    expected = ' or '.join(dtypes)
    raise ValueError(f'{path}: {name} has dtype {tensor.dtype}, expected {expected}')


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
