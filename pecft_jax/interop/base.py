"""The base model of an adapter: a file of this library beside those of huggingface/peft."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pecft_jax.files import read_json, write_json
from pecft_jax.peft.leaves import read_leaves
from pecft_jax.quantised import is_quantised
from pecft_jax.typing import Backbone, Params

BASE = 'pecft.json'


def base_sha256(backbone: Backbone, params: Params) -> str | None:
  """Hex digest of a backbone's weights: equal however they are stored.

  Layers may be stacked, q, k and v fused, and float32 or a type that it holds exactly. None where
  they are quantised: which floats they were is not known.
  """
  if any(map(is_quantised, jax.tree.leaves(params, is_leaf=is_quantised))):
    return None
  digest = hashlib.sha256()
  for name, read in sorted(read_leaves(params, backbone.sites).items()):
    leaf = np.ascontiguousarray(np.asarray(read()), np.float32)
    digest.update(f'{name} {leaf.shape}\n'.encode())
    digest.update(leaf.tobytes())
  return digest.hexdigest()


def write_base(
  directory: pathlib.Path, backbone: Backbone, params: Params, facts: Mapping[str, Any]
) -> None:
  """Writes the name and digest of the base, and what else is known, beside an adapter."""
  base = {'name': backbone.name, 'sha256': base_sha256(backbone, params)}
  write_json(directory / BASE, {'base': base, **facts})


def check_base(directory: pathlib.Path, backbone: Backbone, params: Params) -> None:
  """Raises ValueError where an adapter names other weights as its base; many name none."""
  path = directory / BASE
  if not path.exists():
    return
  found = read_json(path).get('base')
  base = {} if found is None else found
  if not isinstance(base, dict) or not isinstance(base.get('sha256'), str | None):
    raise ValueError(f'{path}: expected a base with the sha256 of its weights, got {base!r:.60}')
  said, here = base.get('sha256'), base_sha256(backbone, params)
  if said is not None and here is not None and said != here:
    raise ValueError(
      f'it is for {base.get("name")} with sha256 {said[:12]}, got weights with '
      f'{here[:12]} for {backbone.name}; any_base=True loads it all the same'
    )
