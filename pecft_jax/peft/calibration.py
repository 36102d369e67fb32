"""The pass of a calibration over data of your own, outside of a run."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.peft.leaves import put_named, weights_named
from pecft_jax.typing import Array, Backbone, Delta, Inputs, Params, PeftTransform


def calibrated(
  backbone: Backbone,
  peft: PeftTransform,
  delta: Delta,
  params: Params,
  batches: Iterable[Any],
  *,
  inputs: Callable[[Any], Inputs] = lambda batch: batch,
  loss: Callable[[Params, Any], Array] | None = None,
) -> Delta:
  """The delta that a transform's calibration makes of batches, instead of a task's data.

  In a run the trainer does this with the data of each task for which a delta starts afresh. A delta
  from here is put into a run by `starting_from(delta, peft)`, as CorDA's of data that should not be
  forgotten.

  Args:
    backbone: frozen.
    peft: a transform with a calibration; how many examples it asks for is ignored.
    delta: of the transform.
    params: of the backbone.
    batches: of equal size, for one compilation.
    inputs: what `backbone.apply` takes of a batch; the batch itself by default.
    loss: `(params, batch) -> []`, the mean over its examples, for transforms that need gradients.

  Raises:
    ValueError: for a transform without a calibration, one that needs gradients if there is no
      loss, or no batch.

  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.peft import eva
  >>> model, peft = pretrained('vit_glyphs16'), eva('block_0/attn/q$', rank=2)
  >>> delta = peft.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> images = jax.random.uniform(jax.random.key(1), (4, 16, 16, 1))
  >>> a = calibrated(model.backbone, peft, delta, model.params, [images])['block_0/attn/q'].a
  >>> bool(jnp.allclose(a.T @ a, jnp.diag(jnp.array([1.0, 1.0, 0.0, 0.0])), atol=1e-5))
  True
  """
  calibration = peft.calibrate
  if calibration is None:
    raise ValueError('calibrated: this transform has no calibration')
  names = () if calibration.gradients is None else calibration.gradients(delta)
  if names and loss is None:
    raise ValueError('calibrated: this transform needs gradients: give loss=(params, batch) -> []')
  sites = backbone.sites

  @jax.jit
  def add(statistics: Any, params: Params, batch: Any) -> Any:
    taps: dict[str, Any] = {}
    x = inputs(batch)
    if calibration.watch is not None:
      taps = backbone.apply(params, x, delta, peft=peft, watch=calibration.watch).taps
    if names:
      assert loss is not None
      of = lambda weights, loss=loss: loss(put_named(weights, params, sites), batch)
      weights = weights_named(names, params, sites)
      found = jax.grad(of)({name: leaf.astype(jnp.float32) for name, leaf in weights.items()})
      taps = {**taps, **{f'gradient:{name}': leaf for name, leaf in found.items()}}
    valid = jnp.ones(len(jax.tree.leaves(x)[0]), bool)
    return calibration.add(statistics, taps, valid)

  shapes = jax.eval_shape(lambda: weights_named(names, params, sites))
  statistics, count = calibration.empty(delta, shapes), 0
  for batch in batches:
    parts = _ones(batch) if calibration.each else [batch]
    for part in parts:
      statistics, count = add(statistics, params, part), count + 1
  if not count:
    raise ValueError('calibrated: expected at least one batch')
  return calibration.finish(delta, statistics)


def _ones(batch: Any) -> list[Any]:
  """The examples of a batch, each as a batch of one."""
  size = len(jax.tree.leaves(batch)[0])
  return [jax.tree.map(lambda rows, i=i: rows[i : i + 1], batch) for i in range(size)]
