"""FISH mask: the weights with the largest Fisher information are trained (Sung et al., 2021,
arXiv:2111.09839).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.about import Paper, about
from pecft_jax.peft.largest import check_share
from pecft_jax.peft.leaves import change_leaves, matching_leaves, read_leaves
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Calibration, Delta, Kept, Key, Params, PeftTransform, SiteSpec


class FishDelta(NamedTuple):
  """W + S for all leaves together, with K entries of S that are not zero.

  Entries are numbered through all leaves, by name.
  """

  values: Array  # [K], zeros at init.
  index: Kept  # [K] int32, which entries; spread evenly before the calibration.
  starts: Kept  # {leaf name: [] int32}, the number of its first entry.


@about(
  'transform',
  'selective',
  Paper('Training neural networks with fixed sparse masks', '2111.09839'),
  tiny=lambda: fish(share=0.05, examples=6),
)
@recorded
def fish(pattern: str = '', share: float = 0.005, *, examples: int = 1024) -> PeftTransform:
  """Trains the weights with the largest Fisher information, chosen once before a delta is trained.

  F_i = 1/N sum over examples of (d log p(y | x) / d theta_i)^2, with the labels of the data (eq.
  5); the K = share x |theta| entries with the largest F among all matching leaves are trained, the
  rest stay as they are. K numbers are trained, and K indices stored.

  The pass before training takes N forward and backward passes of one example, and holds F and one
  gradient, each as large as the matching weights in float32. An update computes the gradient
  of the matching weights as `full` does, but has moments for K entries alone.

  Args:
    pattern: regex searched in the leaf path; all leaves by default.
    share: of the entries of these leaves, in (0, 1].
    examples: N, of the task's.

  Raises:
    ValueError: for a share outside (0, 1], or fewer than one example; at init, if the pattern
      matches no leaf, or more entries than int32 can number.

  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = fish('mlp', share=0.01)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta.values.shape, delta.index.value.dtype.name
  ((4452,), 'int32')
  """
  if examples < 1:
    raise ValueError(f'expected at least one example, got {examples}')
  return sensitive_entries(pattern, share, each=True, examples=examples)


def sensitive_entries(
  pattern: str, share: float, *, each: bool, examples: int | None
) -> PeftTransform:
  """The transform of `fish`, whose F sums squares of the gradients of single examples or batches.

  Args:
    pattern: as of `fish`.
    share: as of `fish`.
    each: whether to square gradients of single examples; those of batches otherwise.
    examples: of the task's; None for all of them.

  Raises:
    ValueError: as `fish`.
  """
  check_share(share)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    del key  # The entries before the calibration are spread evenly.
    leaves = read_leaves(params, sites)
    names = sorted(matching_leaves(pattern, leaves))
    sizes = [jax.eval_shape(leaves[name]).size for name in names]
    total = sum(sizes)
    if total >= 2**31:
      raise ValueError(
        f'{total} entries of leaves match {pattern!r}, more than int32 can number: choose fewer'
      )
    count = max(1, round(share * total))
    index = (np.arange(count) * total // count).astype(np.int32)
    starts = {name: sum(sizes[:i]) for i, name in enumerate(names)}
    starts = {name: jnp.asarray(at, jnp.int32) for name, at in starts.items()}
    return FishDelta(jnp.zeros(count), Kept(jnp.asarray(index)), Kept(starts))

  def replace(delta: FishDelta, params: Params) -> Params:
    def changed(start: Array) -> Callable[[Array], Array]:
      return lambda leaf: leaf + scattered(delta.values, delta.index.value - start, leaf)

    starts = delta.starts.value
    return change_leaves({name: changed(start) for name, start in starts.items()}, params)

  def gradients(delta: FishDelta) -> Sequence[str]:
    return sorted(delta.starts.value)

  def empty(delta: FishDelta, weights: Mapping[str, Any]) -> Any:
    del delta
    return {name: jnp.zeros(leaf.shape) for name, leaf in weights.items()}

  def add(fisher: Any, taps: dict[str, Any], valid: Array) -> Any:
    del valid  # The gradient of an example that only fills up is zero.
    return {name: old + jnp.square(taps[f'gradient:{name}']) for name, old in fisher.items()}

  def finish(delta: FishDelta, fisher: Any) -> FishDelta:
    scores = jnp.concatenate([fisher[name].reshape(-1) for name in sorted(fisher)])
    index = jnp.sort(jax.lax.top_k(scores, delta.values.shape[0])[1]).astype(jnp.int32)
    return delta._replace(values=jnp.zeros_like(delta.values), index=Kept(index))

  calibrate = Calibration(
    None, empty, add, finish, gradients=gradients, each=each, examples=examples
  )
  return PeftTransform(init, replace=replace, merge=replace, calibrate=calibrate, selective=True)


def scattered(values: Array, index: Array, like: Array) -> Array:
  """Values at flat places of an array that is zero elsewhere, in its shape and type.

  Args:
    values: [K]
    index: [K] int32; places outside of the array are left out.
    like: the array.

  >>> scattered(jnp.ones(3), jnp.array([-1, 2, 9]), jnp.zeros((2, 2))).tolist()
  [[0.0, 0.0], [1.0, 0.0]]
  """
  inside = jnp.where(index < 0, like.size, index)  # Negative places would count from the end.
  flat = jnp.zeros(like.size, values.dtype).at[inside].add(values, mode='drop')
  return flat.reshape(like.shape).astype(like.dtype)
