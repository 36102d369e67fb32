"""What transformer backbones share: sites, and the stack of blocks as loop or scan."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from pecft_jax.peft.compose import layer_of
from pecft_jax.product import product
from pecft_jax.typing import Array, Delta, Key, Params, PeftTransform, Site

Tap = Callable[..., Array]  # (site, next_fn, *args) -> out

KERNEL_INIT = nn.initializers.truncated_normal(0.02)


def put_on(
  peft: PeftTransform | None, delta: Delta | None, params: Params, key: Key | None = None
) -> tuple[Delta, Params]:
  """What a backbone does with a transform before its layers: the delta and weights of one pass.

  Args:
    peft: the transform, or None.
    delta: its own, or None.
    params: the frozen weights, some of which selective transforms replace.
    key: of dropout; None leaves it out.
  """
  if peft is None or delta is None:
    return {}, params
  return delta if key is None else peft.noise(delta, key), peft.weights(delta, params)


def tap_of(peft: PeftTransform | None, delta: Delta) -> Tap:
  """Delivers a transform to the sites of a backbone."""
  if peft is None:
    return lambda site, next_fn, *args: next_fn(*args)
  return lambda site, next_fn, *args: peft.intercept(delta, site, next_fn, *args)


def linear(x: Array, w: Array, b: Array | None) -> Array:
  """x W + b in the dtype of x: [B, ..., d_in] -> [B, ..., d_out]."""
  y = product(along_data(x), w)
  return along_data(y if b is None else y + b.astype(x.dtype))


def along_data(x: Array) -> Array:
  """Keeps examples on the devices that they were sent to.

  Weights may be split over the same devices as the batch. Left to itself, the
  compiler then also finds it good to split activations by features, and moves
  whole batches from layer to layer; with this, weights are what moves.

  Args:
    x: [B, ...]

  Returns:
    The same; B is split over the axis `data` of the mesh that this is traced
    under, if there is one and it divides B.
  """
  mesh = jax.sharding.get_abstract_mesh()
  parts = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True)).get('data', 1)
  if parts == 1 or 'data' not in mesh.auto_axes:
    return x
  # An example alone is under a vmap, which tells by `spmd_axis_name` that its axis is the batch.
  lead = P.UNCONSTRAINED if x.shape[0] % parts else 'data'
  return jax.lax.with_sharding_constraint(x, P(lead, *(P.UNCONSTRAINED,) * (x.ndim - 1)))


def layer_norm(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-6) -> Array:
  """Layer normalisation over the last axis, computed in float32."""
  wide = x.astype(jnp.float32)
  mean = wide.mean(-1, keepdims=True)
  variance = jnp.square(wide - mean).mean(-1, keepdims=True)
  normal = (wide - mean) * jax.lax.rsqrt(variance + epsilon)
  return (normal * scale + bias).astype(x.dtype)


def rms_norm(x: Array, scale: Array, bias: Array | None, *, epsilon: float = 1e-5) -> Array:
  """Root-mean-square normalisation over the last axis, computed in float32.

  Zhang and Sennrich, 2019, arXiv:1910.07467. It has no bias of its own; one
  that a transform gives is added.
  """
  wide = x.astype(jnp.float32)
  normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
  y = normal * scale
  return (y if bias is None else y + bias).astype(x.dtype)


def attend(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
  """Softmax attention: q [B, Tq, H, K], k and v [B, T, Hkv, K] -> [B, Tq, H, K].

  Hkv divides H: consecutive queries share a key (Ainslie et al., 2023,
  arXiv:2305.13245). The mask, if any, is True where a query may look: [Tq, T]
  or [B, Tq, T].
  """
  if mask is not None:
    mask = mask[None, None] if mask.ndim == 2 else mask[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask)


# Of elementwise functions and norms the backward pass is given the inputs alone: what it needs
# beside them is cheaper to compute again than to keep, a quarter of all that a step keeps.
gelu = jax.checkpoint(functools.partial(nn.gelu, approximate=False))
gated = jax.checkpoint(lambda gate, up: nn.silu(gate) * up)


class Kernel(nn.Module):
  """Holds the weights of a linear map, or of a stack of them: called, returns (kernel, bias)."""

  d_in: int
  d_out: int
  lead: tuple[int, ...] = ()

  @nn.compact
  def __call__(self) -> tuple[Array, Array]:
    kernel = self.param('kernel', KERNEL_INIT, (*self.lead, self.d_in, self.d_out))
    return kernel, self.param('bias', nn.initializers.zeros, (*self.lead, self.d_out))


class Linear(nn.Module):
  """A linear site."""

  width: int
  tap: Tap
  site: str
  biased: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param('kernel', KERNEL_INIT, (x.shape[-1], self.width))
    bias = self.param('bias', nn.initializers.zeros, (self.width,)) if self.biased else None
    return self.tap(Site('linear', self.site), linear, x, kernel, bias)


class Norm(nn.Module):
  """A layer-normalisation site."""

  tap: Tap
  site: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    return self.tap(Site('norm', self.site), jax.checkpoint(layer_norm), x, scale, bias)


class RmsNorm(nn.Module):
  """A site of root-mean-square normalisation: a norm without a bias."""

  epsilon: float
  tap: Tap
  site: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    norm = jax.checkpoint(functools.partial(rms_norm, epsilon=self.epsilon))
    return self.tap(Site('norm', self.site), norm, x, scale, None)


# --- the stack of blocks ---------------------------------------------------------------------

RunBlock = Callable[..., Array]  # (params, delta, name, x, mask, rows) -> x


def run_blocks(
  run_block: RunBlock,
  params: Params,
  delta: Delta,
  x: Array,
  mask: Array | None,
  *,
  depth: int,
  rows: int | None,
  remat: Any = None,
) -> Array:
  """Runs the blocks one after another.

  Parameters named `block_0`, `block_1`, … run as a Python loop, stacked ones
  (`blocks`, leading axis L) as one `lax.scan` over each run of consecutive
  layers whose deltas have the same structure. Deltas are named by layer in
  both, and results are equal.

  Args:
    run_block: `(params, delta, name, x, mask, rows) -> x` of one block; sites
      in it are named below `name`.
    params: the backbone's parameters.
    delta: a transform's delta; may be empty.
    x: [B, T, D]
    mask: [T, T] or [B, T, T] bool, or None.
    depth: L.
    rows: tokens that the last block computes; None for all.
    remat: a `jax.checkpoint_policies` policy, or None to keep activations; of
      stacked blocks `products_and_sums`.
  """

  def call(index, block_delta, name, x, rows):
    stacked = 'blocks' in params
    policy = products_and_sums if remat is None and stacked else remat

    def run(weights, delta, x):
      # Taken out in here, so that the backward pass may take it out again.
      block = _layer(weights, index) if stacked else weights
      return run_block(block, delta, name, x, mask, rows)

    if policy is not None:
      run = jax.checkpoint(run, policy=policy)
    return run(params['blocks' if stacked else name], block_delta, x)

  if 'blocks' not in params:
    for i in range(depth):
      last = rows if i == depth - 1 else None
      x = call(i, delta, f'block_{i}', x, last)
    return x

  whole = depth if rows is None else depth - 1
  for low, high, stack in _runs(delta, whole):

    def body(x, step, low=low):
      i, layer_delta = step
      return call(i, layer_delta, f'block_{low}', x, None), None

    x, _ = jax.lax.scan(body, x, (jnp.arange(low, high), stack))
  if rows is not None:
    last = depth - 1
    x = call(last, delta, f'block_{last}', x, rows)
  return x


def products_and_sums(primitive: Any, *_: Any, **__: Any) -> bool:
  """A policy for `jax.checkpoint`: keeps what products of matrices and sums give.

  All else the backward pass computes again. Element-wise functions cost little
  beside products. And what it needs of a weight (its layer of a stack, its part
  of a fused one, its cast to another dtype) is taken from the parameters, not
  kept for every layer: for a stack run by `lax.scan` that would be a second
  copy of the model, and for weights that are split over devices a whole one.
  """
  return primitive.name in {'dot_general', 'add', 'add_any'}


def _layer(stacked: Params, i: Any) -> Params:
  return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), stacked)


def _of_layer(delta: Delta, layer: int, name: str) -> Delta:
  """The part of a delta that one layer can read, its own keys renamed to `name`."""
  if not isinstance(delta, dict):
    return delta
  out = {}
  for key, value in delta.items():
    at = layer_of(key)
    if at is None:
      out[key] = _of_layer(value, layer, name)
    elif at == layer:
      out[key.replace(f'block_{layer}', name, 1)] = value
  return out


def _runs(delta: Delta, depth: int) -> list[tuple[int, int, Delta]]:
  """Splits layers into runs of equal delta structure: (low, high, stacked delta)."""
  shape = lambda tree: (
    jax.tree.structure(tree),
    [(a.shape, a.dtype) for a in jax.tree.leaves(tree)],
  )
  runs: list[tuple[int, list[Delta]]] = []
  for i in range(depth):
    if runs:
      low, members = runs[-1]
      here = _of_layer(delta, i, f'block_{low}')
      if shape(here) == shape(members[0]):
        members.append(here)
        continue
    runs.append((i, [_of_layer(delta, i, f'block_{i}')]))
  return [
    (low, low + len(members), jax.tree.map(lambda *leaves: jnp.stack(leaves), *members))
    for low, members in runs
  ]


def stack_blocks(params: Params, depth: int) -> Params:
  """`block_0`, `block_1`, … to one tree `blocks` with a leading layer axis."""
  blocks = [params[f'block_{i}'] for i in range(depth)]
  rest = {k: v for k, v in params.items() if layer_of(k) is None}
  return {**rest, 'blocks': jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_blocks(params: Params, depth: int) -> Params:
  """The inverse of `stack_blocks`."""
  rest = {k: v for k, v in params.items() if k != 'blocks'}
  return {**rest, **{f'block_{i}': _layer(params['blocks'], i) for i in range(depth)}}
