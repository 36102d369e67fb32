"""Communication between devices in a training step, by the rules of the layout alone.

Collectives are taken to be rings: of n devices, each sends (n - 1) / n of what is gathered or
scattered, and twice that of what is summed (Patarasuk and Yuan, 2009). Further communication that
XLA's partitioner may add is not counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pecft_jax.devices.sharding import Layout
from pecft_jax.plan.memory import splits
from pecft_jax.typing import Params, SiteSpec, TrainState


class Sent(NamedTuple):
  """Bytes that each device sends in one step.

  Attributes:
    gradients: sums over the parts of the batch, and parameters that are gathered for them.
    weights: of the backbone, gathered for the forward and for the backward pass.
    activations: sums over the parts of layers, in both passes.
  """

  gradients: float
  weights: float
  activations: float


def sent(
  layout: Layout,
  state: TrainState,
  frozen: Params,
  sites: Sequence[SiteSpec],
  local_batch: int,
) -> Sent:
  """Counts the bytes of a training step.

  Args:
    layout: mesh and rules.
    state: shapes.
    frozen: shapes.
    sites: of the backbone; they give the number of tokens, and the dtype of activations.
    local_batch: examples per device.
  """
  sizes = dict(layout.mesh.shape)
  share = lambda n: (n - 1) / n
  n, trained = sizes['data'], splits(layout, state._replace(memory=(), opt_state=()))
  gradients = weights = activations = 0.0
  for leaf in trained:
    if leaf.name.startswith('params/'):
      local = leaf.bytes
      for axis in leaf.axes:
        local //= sizes[axis] if axis not in {None, 'data'} else 1
      # A reduce-scatter and two all-gathers of the parameter; or an all-reduce.
      gradients += (3 if 'data' in leaf.axes else 2) * share(n) * local
  linear = next(spec for spec in sites if spec.site.kind == 'linear')
  attend = next((spec for spec in sites if spec.site.kind == 'attend'), linear)
  tokens = attend.args[1 if attend is not linear else 0].shape[1]
  for leaf in splits(layout, frozen):
    others = [axis for axis in leaf.axes if axis not in {None, 'data'}]
    local = leaf.bytes
    for axis in others:
      local //= sizes[axis]
    if 'data' in leaf.axes:
      weights += 2 * share(n) * local
    # Of a weight that is sharded by its rows, each device has a summand of the output.
    if len(leaf.axes) >= 2 and leaf.axes[-2] in others:
      layers = leaf.shape[0] if len(leaf.shape) == 3 else 1
      out = layers * local_batch * tokens * leaf.shape[-1] * linear.out.dtype.itemsize
      # In the backward pass, the sums for the column-split layers before it are as large.
      activations += 2 * 2 * share(sizes[leaf.axes[-2]]) * out
  return Sent(gradients, weights, activations)
