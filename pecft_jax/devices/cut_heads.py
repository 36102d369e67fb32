"""Attention heads that a mesh does not divide."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

from pecft_jax.devices.rules import Rule, decided
from pecft_jax.devices.sharding import Layout
from pecft_jax.paths import named_leaves
from pecft_jax.typing import Params, SiteSpec


def warn_of_cut_heads(layout: Layout, sites: Sequence[SiteSpec], frozen: Params) -> None:
  """Warns where a weight of queries, keys or values is sharded within heads.

  Results are right then, but devices exchange activations in every attention.

  Args:
    layout: mesh and rules.
    sites: of the backbone.
    frozen: its weights, or their shapes.
  """
  counts = {
    re.sub(r'block_\d+/', '', spec.site.path): (spec.args[0].shape[2], spec.args[1].shape[2])
    for spec in sites
    if spec.site.kind == 'attend'
  }
  plain: Any = layout.rules  # Rules may be written as bare tuples.
  rules = [Rule(*rule) for rule in plain]
  for name, leaf in named_leaves(frozen):
    for path, (heads, shared) in counts.items():
      if not re.search(rf'(^|/){re.escape(path)}/(q|k|v|qkv)/kernel$', name):
        continue
      axes = decided(layout.mesh, rules, name, leaf.shape)[1]
      axis = axes[-1] if axes else None
      parts = 1 if axis is None else layout.mesh.shape[axis]
      if heads % parts or shared % parts:
        keys = '' if heads == shared else f' and {shared} of keys and values'
        warnings.warn(
          f'{parts} devices of axis {axis!r} do not divide the {heads} attention heads{keys} of '
          f'{name!r}: heads are cut, and activations are exchanged in every attention; choose '
          'another size of the axis',
          stacklevel=2,
        )
        return
