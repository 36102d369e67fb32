"""Merging a delta into weights, and undoing it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.paths import map_named
from pecft_jax.typing import Array, Delta, Inputs, Params, PeftTransform


class Merged(NamedTuple):
  """Merged parameters, with the originals of the leaves that were replaced."""

  params: Params
  originals: dict[str, Array]  # The replaced leaves, by path.


def merged(peft: PeftTransform, delta: Delta, params: Params) -> Merged:
  """Puts a delta into the weights.

  The arithmetic is done in float32 whatever the weights are stored in; each
  leaf keeps its type, so the same compiled program serves the merged model.
  `merge_error` measures the effect of rounding to that type.

  Args:
    peft: a transform with a weight-space form.
    delta: of the transform.
    params: of the model.

  Raises:
    ValueError: if the transform has no weight-space form.

  >>> import jax, jax.numpy as jnp
  >>> from pecft_jax.peft import lora, weight_sites
  >>> params = {'fc': {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}}
  >>> peft = lora('fc', rank=1, alpha=1.0)
  >>> delta = peft.init(jax.random.key(0), weight_sites(params), params)
  >>> delta['fc'] = delta['fc']._replace(a=jnp.ones((3, 1)), b=jnp.ones((1, 2)))
  >>> both = merged(peft, delta, params)
  >>> both.params['fc']['w'].tolist(), list(both.originals)
  ([[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]], ['fc/w'])
  """
  if peft.merge is None:
    raise ValueError(
      'this transform cannot be merged: it, or a part of its chain, is no change of weights '
      '(a prompt, a prefix, an adapter with a non-linearity); apply it with peft= instead'
    )
  wide = jax.tree.map(_widened, params)
  new = peft.merge(delta, wide)
  originals: dict[str, Array] = {}

  def settle(name: str, old: Array, wide: Array, new: Array) -> Array:
    if new is wide:  # merge shares every leaf that it does not replace.
      return old
    originals[name] = old
    return jnp.asarray(new, old.dtype)

  return Merged(map_named(settle, params, wide, new), originals)


def unmerge(merged: Merged) -> Params:
  """The parameters before merging, bit by bit.

  Args:
    merged: what `merged` returned.

  >>> import jax, jax.numpy as jnp
  >>> from pecft_jax.peft import lora, weight_sites
  >>> params = {'fc': {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}}
  >>> peft = lora('fc', rank=1, alpha=1.0)
  >>> delta = peft.init(jax.random.key(0), weight_sites(params), params)
  >>> delta['fc'] = delta['fc']._replace(a=jnp.ones((3, 1)), b=jnp.ones((1, 2)))
  >>> bool((unmerge(merged(peft, delta, params))['fc']['w'] == params['fc']['w']).all())
  True
  """
  return map_named(merged.originals.get, merged.params)


def merge_error(
  apply: Callable[..., Any], peft: PeftTransform, delta: Delta, params: Params, inputs: Inputs
) -> Array:
  """The largest absolute difference that merging makes to any output.

  Args:
    apply: `(params, inputs, delta=None, *, peft=None) -> pytree of arrays`, as
      in `Backbone`.
    peft: a transform with a weight-space form.
    delta: its delta.
    params: of the model.
    inputs: one batch.

  Returns:
    [] float32

  >>> import jax, jax.numpy as jnp
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.peft import lora
  >>> model = pretrained('vit_glyphs16')
  >>> peft = lora(r'fc1$', rank=2)
  >>> delta = peft.init(jax.random.key(1), model.backbone.sites, model.params)
  >>> delta = jax.tree.map(lambda leaf: leaf + 0.1, delta)  # LoRA starts with B = 0.
  >>> images = jnp.ones((1, 16, 16, 1))
  >>> error = merge_error(model.backbone.apply, peft, delta, model.params, images)
  >>> bool(error < 1e-5)
  True
  """
  outputs = apply(params, inputs, delta, peft=peft)
  again = apply(merged(peft, delta, params).params, inputs)
  gaps = jax.tree.map(lambda a, b: jnp.abs(_widened(a) - _widened(b)).max(), outputs, again)
  return jnp.stack(jax.tree.leaves(gaps)).max()


def _widened(leaf: Array) -> Array:
  leaf = jnp.asarray(leaf)
  narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
  return leaf.astype(jnp.float32) if narrow else leaf
