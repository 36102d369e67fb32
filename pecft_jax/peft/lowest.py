"""The lowest block in which a transform acts: all blocks below it are those of the frozen model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.paths import named_leaves
from pecft_jax.peft.leaves import block_of, of_layers
from pecft_jax.typing import Array, Backbone, Delta, Params, PeftTransform, SiteSpec, Watch


def lowest_block(backbone: Backbone, peft: PeftTransform) -> int:
  """The number of the lowest block in which a transform acts.

  Nothing is assumed of the delta: a site counts as untouched if `intercept` hands all arguments on
  and gives back the very result, and a weight if `replace` gives back the very array.

  Args:
    backbone: any; one without an `entry` cannot be entered above block 0.
    peft: a transform that finds its sites in the backbone.

  Returns:
    0 where it acts in the first block or before it (on embeddings, or on tokens around all blocks);
    the depth of the backbone where it acts in no block.

  Raises:
    ValueError: if the transform finds no site in the backbone.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.peft import lora
  >>> model = architecture('vit_glyphs16')
  >>> lowest_block(model, lora('block_[45]/attn/q')), lowest_block(model, lora('patch'))
  (4, 0)
  """
  if backbone.entry is None:
    return 0
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(backbone.init, key)
  delta = jax.eval_shape(lambda key, params: peft.init(key, backbone.sites, params), key, params)
  found = [spec.site.path for spec in backbone.sites if _acts(peft, delta, spec)]
  # With names of its own for each layer, so that one that is replaced is not all of them.
  layers = {'': range(backbone.depth)}
  rest = {name: tree for name, tree in params.items() if name != 'blocks' and not block_of(name)}
  by_layer = {**rest, **jax.eval_shape(lambda params: of_layers(params, layers), params)}
  found += _replaced(peft, delta, by_layer)
  return min((_height(backbone, path) for path in found), default=backbone.depth)


def asks_below(watch: Watch, backbone: Backbone, block: int) -> bool:
  """Whether `watch` reads anything from sites below a block."""
  below = [spec for spec in backbone.sites if _height(backbone, spec.site.path) < block]

  def asks(spec: SiteSpec) -> bool:
    found = jax.eval_shape(lambda args, out: watch(spec.site, args, out), spec.args, spec.out)
    return found is not None

  return any(asks(spec) for spec in below)


def _height(backbone: Backbone, path: str) -> int:
  """The number of the block that a path belongs to; the depth of the backbone above all blocks."""
  assert backbone.entry is not None
  if (block := block_of(path)) is not None:
    return block.layer
  return backbone.depth if path.partition('/')[0] in backbone.entry.above else 0


def _acts(peft: PeftTransform, delta: Delta, spec: SiteSpec) -> bool:
  """Whether a transform changes what happens at a site."""
  run = peft.intercept
  if run is None:
    return False
  untouched = []

  def trace(delta: Delta, args: tuple[Any, ...]) -> None:
    outs: list[Array] = []

    def next_fn(*given: Any) -> Array:
      same = len(given) == len(args) and all(a is b for a, b in zip(given, args, strict=True))
      outs.append(jnp.zeros(spec.out.shape, spec.out.dtype))
      untouched.append(same)
      return outs[-1]

    out = run(delta, spec.site, next_fn, *args)
    untouched.append(len(outs) == 1 and out is outs[0])

  jax.eval_shape(trace, delta, spec.args)
  return not all(untouched)


def _replaced(peft: PeftTransform, delta: Delta, params: Params) -> list[str]:
  """Names of the weights that a transform replaces."""
  replace: Callable[[Delta, Params], Params] | None = peft.replace
  if replace is None:
    return []
  found: list[str] = []

  def trace(delta: Delta, params: Params) -> None:
    new = dict(named_leaves(replace(delta, params)))
    found.extend(name for name, leaf in named_leaves(params) if new[name] is not leaf)

  jax.eval_shape(trace, delta, params)
  return found
