"""AdapterDrop: adapters that are absent in the lowest blocks (Rücklé et al., 2021,
arXiv:2010.11918).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.arguments import at_least
from pecft_jax.peft.compose import chain
from pecft_jax.peft.leaves import Block, block_of
from pecft_jax.peft.outputs import beside_the_plain
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Key, PeftTransform, Site

_INSIDE, _PRESENT = 'adapters', 'present'


@recorded
def adapter_drop(transform: PeftTransform, most: int, *, stack: str | None = None) -> PeftTransform:
  """Leaves a transform out of a random number of the lowest blocks in each pass of training.

  The number is drawn evenly from 0 to `most`, for a batch: the paper's robust training, whose range
  was not checked against its text. A model trained so works with its adapters removed from any of
  these: `without_lowest(delta, n)`, in which case the blocks below are those of the frozen model.
  (Where the number is known before training, `at_layers` is enough.) The delta is
  `{'adapters': delta of the transform}`. Nothing is saved in training: what is left out is computed
  all the same, as the number changes from step to step.

  Args:
    transform: that changes what sites give, and not what they read: adapters, LoRA, scalings of
      outputs.
    most: of blocks that are left out, at least 1.
    stack: name of the stack that the blocks are of; None for every stack of the backbone.

  Raises:
    ValueError: for `most` below 1, or a transform that replaces weights; while tracing a pass of
      training, at a site where it changes what is read.

  >>> import jax
  >>> from pecft_jax.peft import adapter_drop, pfeiffer
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = adapter_drop(pfeiffer(width=4), most=5)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> sorted(without_lowest(delta, 4)['adapters'])
  ['block_4/mlp', 'block_5/mlp']
  """
  at_least(1, most=most)
  if transform.replace is not None or transform.intercept is None:
    raise ValueError(
      'adapter_drop() leaves out what is added at sites: expected a transform that replaces no '
      'weights, such as adapters or LoRA'
    )
  inside = chain(**{_INSIDE: transform})

  def with_dropout(delta: Delta, key: Key) -> Delta:
    key_own, key_most = jax.random.split(key)
    own = delta if inside.with_dropout is None else inside.with_dropout(delta, key_own)
    absent = jax.random.randint(key_most, (), 0, most + 1)
    blocks = {path: block for path, block in _blocks(delta) if stack in (None, block.stack)}
    return {**own, _PRESENT: {path: block.layer >= absent for path, block in blocks.items()}}

  def intercept(delta: Delta, site: Site, next_fn: Callable[..., Array], *args: Any) -> Array:
    run, present = transform.intercept, delta.get(_PRESENT, {})
    assert run is not None
    if site.path not in present:
      return run(delta[_INSIDE], site, next_fn, *args)
    out, plain = beside_the_plain('adapter_drop', run, delta[_INSIDE], site, next_fn, *args)
    return jnp.where(present[site.path], out, plain)

  return inside._replace(intercept=intercept, with_dropout=with_dropout)


def without_lowest(delta: Delta, count: int, stack: str | None = None) -> Delta:
  """A delta without its sites in the lowest blocks.

  Args:
    delta: of any transform that passes through at sites that its delta does not name.
    count: of blocks, at least 0.
    stack: name of the stack that the blocks are of; None for every stack.

  Raises:
    ValueError: for a negative count, or if no site is left.

  >>> without_lowest({'block_0/mlp': 1, 'block_1/mlp': 2, 'norm': 3}, 1)
  {'block_1/mlp': 2, 'norm': 3}
  """
  at_least(0, count=count)

  def stays(key: str) -> bool:
    block = block_of(key)
    return block is None or stack not in (None, block.stack) or block.layer >= count

  def cut(node: Any) -> Any:
    if not isinstance(node, dict):
      return node
    return {key: cut(value) for key, value in node.items() if stays(key)}

  left: Delta = cut(delta)
  if not jax.tree.leaves(left):
    raise ValueError(f'no site of the delta is above its lowest {count} blocks')
  return left


def _blocks(node: Any) -> Iterator[tuple[str, Block]]:
  """Paths of sites in a delta, also in those of the parts of a chain, with their blocks."""
  if isinstance(node, dict):
    for key, value in node.items():
      block = block_of(key)
      if block is None:
        yield from _blocks(value)
      else:
        yield key, block
