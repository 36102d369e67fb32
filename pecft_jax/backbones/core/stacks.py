"""A stack of equal blocks, run as a loop or as a scan.

A backbone has one stack or more. The blocks of a stack are `block_0`, `block_1`,
... in its parameters, or one tree `blocks` with a leading layer axis L. A
backbone with one stack has them at the top of its parameters, and the stack is
called `''`. Where there are more, each has a name, and its blocks are below it:
`text/block_3`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.backbones.core.taps import tap_of
from pecft_jax.masks import Mask
from pecft_jax.peft.leaves import block_of, inside, with_inside
from pecft_jax.quantised import is_quantised
from pecft_jax.typing import Array, Delta, Params, PeftTransform, Site, Watch

RunBlock = Callable[..., Array]  # (params, tap, name, x, mask, rows) -> x


def run_blocks(
  run_block: RunBlock,
  params: Params,
  delta: Delta,
  x: Array,
  mask: Mask | Array | None,
  *,
  peft: PeftTransform | None,
  depth: int,
  first: int = 0,
  rows: int | None = None,
  stack: str = '',
  watch: Watch | None = None,
  taps: dict[str, Any] | None = None,
  remat: Any = None,
) -> Array:
  """Runs the blocks of a stack one after another.

  Parameters named `block_0`, `block_1`, … run as a Python loop, stacked ones
  (`blocks`, leading axis L) as one `lax.scan` over each run of consecutive
  layers whose deltas have the same structure, and in which `watch` reads the same values. Deltas
  and taps are named by layer in both, and results are equal.

  Args:
    run_block: `(params, tap, name, x, mask, rows) -> x` of one block; sites
      in it are named below `name`, and go through `tap`.
    params: the backbone's parameters.
    delta: a transform's delta; may be empty.
    x: [B, T, D]
    mask: a rule, or [T, T] or [B, T, T] bool, or None.
    peft: the transform, or None.
    depth: L, of this stack; with fewer, the blocks from there on are left out.
    first: number of the block that gets x.
    rows: tokens that the last block computes; None for all.
    stack: its name; `''` in a backbone with one stack.
    watch: what to take from the sites, or None.
    taps: receives what `watch` returns, under `kind:path` of the site.
    remat: a `jax.checkpoint_policies` policy, or None to keep activations; of
      stacked blocks, and of quantised ones, `products_and_sums`.

  Returns:
    [B, T or rows, D]
  """
  prefix = f'{stack}/' if stack else ''
  own = inside(params, stack)
  stacked = 'blocks' in own
  # Dense matrices are made again in the backward pass, not stored.
  sparing = stacked or any(map(is_quantised, jax.tree.leaves(own, is_leaf=is_quantised)))
  policy = products_and_sums if remat is None and sparing else remat

  def call(index, layer, delta, x, rows, watch=watch):
    """Block `index` under the name of block `layer`: [B, T, D], and what is watched in it."""

    def run(weights, delta, x):
      # Sliced in here, so that the backward pass can slice it again instead of storing it.
      block = layer_at(weights, index) if stacked else weights
      found: dict[str, Any] = {}
      tap = tap_of(peft, delta, watch, found, stack=stack, layer=layer)
      return run_block(block, tap, f'{prefix}block_{layer}', x, mask, rows), found

    if policy is not None:
      run = jax.checkpoint(run, policy=policy)
    return run(own['blocks' if stacked else f'block_{layer}'], delta, x)

  taps = {} if taps is None else taps
  if not stacked:
    for i in range(first, depth):
      x, found = call(i, i, delta, x, rows if i == depth - 1 else None)
      taps.update(found)
    return x

  def asks(low: int, delta: Delta) -> Callable[[int], list[_Request]]:
    """The requests of `watch` in a layer like `low`, as a function of its number."""
    seen: list[tuple[Site, Any]] = []
    record = lambda site, args, out: seen.append((site, _shapes((args, out))))
    jax.eval_shape(lambda x: call(low, low, delta, x, None, record)[0], x)
    return lambda layer: [_request(watch, prefix, layer, site, given) for site, given in seen]

  whole = depth if rows is None else depth - 1
  for low, high, deltas in _runs(delta, first, whole, stack, None if watch is None else asks):

    def body(x, step, low=low):
      i, layer_delta = step
      return call(i, low, layer_delta, x, None)

    x, found = jax.lax.scan(body, x, (jnp.arange(low, high), deltas))
    for i in range(low, high):
      for name, tree in found.items():
        own_name = name.replace(f':{prefix}block_{low}', f':{prefix}block_{i}', 1)
        taps[own_name] = layer_at(tree, i - low)
  if rows is not None:
    x, found = call(depth - 1, depth - 1, delta, x, rows)
    taps.update(found)
  return x


def products_and_sums(primitive: Any, *_: Any, **__: Any) -> bool:
  """A policy for `jax.checkpoint`: stores the results of matrix products and sums.

  Everything else is computed again in the backward pass: element-wise functions
  cost little beside products. What it needs of a weight (its layer of a stack, its part
  of a fused one, its cast to another dtype) is taken from the parameters, not stored for every
  layer: for a stack run by `lax.scan` that would be a second copy of the model, and for weights
  that are sharded over devices a full copy.

  Args:
    primitive: a JAX primitive.
    *_: its avals, which are ignored.
    **__: its parameters, which are ignored.

  Returns:
    Whether the results of the primitive are stored for the backward pass.

  >>> import jax, jax.numpy as jnp
  >>> layer = jax.checkpoint(lambda x: jnp.sin(x @ x).sum(), policy=products_and_sums)
  >>> jax.grad(layer)(jnp.eye(2)).shape
  (2, 2)
  """
  return primitive.name in {'dot_general', 'add', 'add_any'}


class _Request(NamedTuple):
  """What `watch` computes at one site."""

  program: str
  tree: Any  # Structure of the result.
  constants: list[Any]  # Arrays that it closes over.


def _request(watch: Any, prefix: str, layer: int, site: Site, given: Any) -> _Request:
  """The request at a layer's site, from `site` and `given` of a layer with the same structure."""
  path = site.path.replace(f'{prefix}block_{site.layer}', f'{prefix}block_{layer}', 1)
  site = site._replace(path=path, layer=layer)
  program, tree = jax.make_jaxpr(lambda pair: watch(site, *pair), return_shape=True)(given)
  return _Request(str(program.jaxpr), jax.tree.structure(tree), program.consts)


def _alike(some: list[_Request], others: list[_Request]) -> bool:
  """Whether one program computes the requests of both layers."""
  return all(
    one[:2] == other[:2]
    and len(one.constants) == len(other.constants)
    and all(a is b for a, b in zip(one.constants, other.constants, strict=True))
    for one, other in zip(some, others, strict=True)
  )


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def _of_layer(delta: Delta, stack: str, layer: int, at: int) -> Delta:
  """The part of a delta that belongs to one layer of a stack, under the name of layer `at`."""
  if not isinstance(delta, dict):
    return delta
  out = {}
  for key, value in delta.items():
    block = block_of(key)
    if block is None:
      out[key] = _of_layer(value, stack, layer, at)
    elif block == (stack, layer):
      out[key.replace(f'block_{layer}', f'block_{at}', 1)] = value
  return out


def _runs(
  delta: Delta,
  first: int,
  depth: int,
  stack: str,
  asks: Callable[[int, Delta], Callable[[int], list[_Request]]] | None,
) -> list[tuple[int, int, Delta]]:
  """Groups layers into runs that share one program: (low, high, stacked delta)."""
  shape = lambda tree: (
    jax.tree.structure(tree),
    [(a.shape, a.dtype) for a in jax.tree.leaves(tree)],
  )
  runs: list[tuple[int, list[Delta], Any]] = []
  for i in range(first, depth):
    if runs:
      low, members, asked = runs[-1]
      here = _of_layer(delta, stack, i, low)
      like = shape(here) == shape(members[0])
      if like and (asked is None or _alike(asked(i), asked(low))):
        members.append(here)
        continue
    own = _of_layer(delta, stack, i, i)
    runs.append((i, [own], None if asks is None else asks(i, own)))
  return [
    (low, low + len(members), jax.tree.map(lambda *leaves: jnp.stack(leaves), *members))
    for low, members, _ in runs
  ]


def layer_at(stacked: Any, index: Any) -> Any:
  """One layer of a tree with a leading layer axis on every leaf; the index may be traced."""
  return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), stacked)


def stack_blocks(params: Params, depth: int, stack: str = '') -> Params:
  """`block_0`, `block_1`, … of a stack to one tree `blocks` with a leading layer axis.

  Args:
    params: the backbone's parameters.
    depth: L, of this stack.
    stack: its name; `''` in a backbone with one stack.

  >>> import jax.numpy as jnp
  >>> params = {'block_0': {'w': jnp.ones(3)}, 'block_1': {'w': jnp.zeros(3)}}
  >>> stack_blocks(params, depth=2)['blocks']['w'].shape
  (2, 3)
  """

  def stacked(own: Params) -> Params:
    blocks = [own[f'block_{i}'] for i in range(depth)]
    rest = {k: v for k, v in own.items() if block_of(k) is None}
    return {**rest, 'blocks': jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}

  return with_inside(params, stack, stacked)


def unstack_blocks(params: Params, depth: int, stack: str = '') -> Params:
  """The inverse of `stack_blocks`.

  Args:
    params: the backbone's parameters.
    depth: L, of this stack.
    stack: its name; `''` in a backbone with one stack.

  >>> import jax.numpy as jnp
  >>> params = unstack_blocks({'blocks': {'w': jnp.ones((2, 3))}}, depth=2)
  >>> sorted(params), params['block_0']['w'].shape
  (['block_0', 'block_1'], (3,))
  """

  def unstacked(own: Params) -> Params:
    rest = {k: v for k, v in own.items() if k != 'blocks'}
    return {**rest, **{f'block_{i}': layer_at(own['blocks'], i) for i in range(depth)}}

  return with_inside(params, stack, unstacked)
