"""A transform that starts from a delta that there is."""

import jax
import jax.numpy as jnp

from pecft_jax.paths import named_leaves
from pecft_jax.settings import recorded
from pecft_jax.typing import Delta, PeftTransform


@recorded
def starting_from(delta: Delta, transform: PeftTransform) -> PeftTransform:
  """The same transform, whose `init` gives a copy of a delta: of another run, or another library.

  It is not calibrated again: what a calibration chose is in the delta.

  In a method it is what the first task starts from. Methods with a delta per task that start each
  one anew start all of them from it.

  Args:
    delta: of the transform, for all sites that it finds on the model. It counts for a run's
      identity: runs that started from other deltas are others.
    transform: that the delta is of.

  Raises:
    ValueError: at init, if the delta has other leaves than the transform makes for the model, or
      other shapes.

  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.peft import lora
  >>> model, peft = pretrained('vit_glyphs16'), lora('attn/q$', rank=2)
  >>> delta = peft.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> trained = jax.tree.map(lambda leaf: leaf + 1, delta)
  >>> again = starting_from(trained, peft)
  >>> found = again.init(jax.random.key(1), model.backbone.sites, model.params)
  >>> bool((found['block_0/attn/q'].b == 1).all())
  True
  """

  def init(key, sites, params):
    made = jax.eval_shape(lambda key: transform.init(key, sites, params), key)
    want, got = (
      {name: (leaf.shape, jnp.dtype(leaf.dtype).name) for name, leaf in named_leaves(tree)}
      for tree in (made, delta)
    )
    if want != got:
      name = next(each for each in [*want, *got] if want.get(each) != got.get(each))
      words = lambda found: 'no such leaf' if found is None else f'{list(found[0])} {found[1]}'
      raise ValueError(
        f'the delta does not fit the transform on this model: expected {words(want.get(name))} at '
        f'{name!r}, got {words(got.get(name))}'
      )
    return jax.tree.map(jnp.array, delta)

  return transform._replace(init=init, calibrate=None)
