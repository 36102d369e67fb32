"""Whether an adapter on disk is the one that was to be written."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from pecft_jax.inputs import TokenIds
from pecft_jax.interop.hf_peft_load import load_hf_peft
from pecft_jax.paths import named_leaves
from pecft_jax.quantised import dequantised
from pecft_jax.typing import Adapted, Backbone, Params

_RTOL = 1e-5  # Scales, and turns of prefixes, are applied in another order.


def check_saved(
  directory: str | pathlib.Path, backbone: Backbone, adapted: Adapted, params: Params
) -> None:
  """Reads an adapter that was written, and compares what it does to the weights.

  Prompts and prefixes, which do nothing to weights, are compared by the feature of a short text.

  Args:
    directory: that `save_hf_peft` wrote.
    backbone: that is adapted.
    adapted: what was given to `save_hf_peft`.
    params: the backbone's weights.

  Raises:
    ValueError: if it cannot be read, or differs by more than rounding; names the weight.
  """
  again = load_hf_peft(directory, backbone, params=params)
  params = dequantised(params, jnp.float32)
  trees = [_effect(each, backbone, params) for each in (adapted, again)]
  pairs = [dict(named_leaves({'weights': tree, 'head': head})) for tree, head in zip(
    trees, (adapted.head, again.head), strict=True
  )]  # fmt: skip
  if pairs[0].keys() != pairs[1].keys():
    raise ValueError(
      f'{directory} was not written as it should: it reads back as '
      f'{sorted(pairs[0].keys() ^ pairs[1].keys())[:3]} differ'
    )
  for name, want in pairs[0].items():
    want, got = np.asarray(want, np.float32), np.asarray(pairs[1][name], np.float32)  # noqa: PLW2901
    gap = float(np.abs(want - got).max(initial=0)) if want.shape == got.shape else np.inf
    if not gap <= _RTOL * max(1.0, float(np.abs(want).max(initial=0))):
      raise ValueError(
        f'{directory} was not written as it should: {name} differs by {gap:.1e} when it is read'
      )


def _effect(adapted: Adapted, backbone: Backbone, params: Params) -> Any:
  """The merged weights, or the feature of a text."""
  peft, delta, _ = adapted
  if peft.merge is not None:
    return peft.merge(delta, params)
  assert isinstance(backbone.inputs, TokenIds), 'prompts are written for models of text'
  # Two ids of any vocabulary in turn, neither of them that of padding.
  ids = np.arange(min(8, *backbone.inputs.shape)) % 2 + (backbone.inputs.pad in (0, 1)) * 2
  ids = jnp.asarray(ids[None], jnp.int32)
  return {'pooled': backbone.apply(params, ids, delta, peft=peft).pooled}
