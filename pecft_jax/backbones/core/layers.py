"""Layers that backbones are made of; each calls its site through a tap."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from pecft_jax.backbones.core.taps import Tap
from pecft_jax.product import product
from pecft_jax.quantised import is_quantised
from pecft_jax.typing import Array, Site

KERNEL_INIT = nn.initializers.truncated_normal(0.02)


def linear(x: Array, w: Array, b: Array | None) -> Array:
  """x W + b in the dtype of x: [B, ..., d_in] -> [B, ..., d_out]."""
  y = product(along_data(x), w)
  return along_data(y if b is None else y + b.astype(x.dtype))


def along_data(x: Array) -> Array:
  """Keeps examples on the devices that they were sent to.

  Weights may be sharded over the same devices as the batch. Without this constraint the compiler
  may then split activations by features, and move whole batches between layers; with it, weights
  are moved.

  Args:
    x: [B, ...]

  Returns:
    The same; B is sharded over the axis `data` of the mesh that this is traced
    under, if there is one and it divides B.
  """
  mesh = jax.sharding.get_abstract_mesh()
  parts = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True)).get('data', 1)
  if parts == 1 or 'data' not in mesh.auto_axes:
    return x
  # A single example is under a vmap, whose `spmd_axis_name` says that its axis is the batch.
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

  Zhang and Sennrich, 2019, arXiv:1910.07467. It has no bias of its own; a transform's bias is
  added.
  """
  wide = x.astype(jnp.float32)
  normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
  y = normal * scale
  return (y if bias is None else y + bias).astype(x.dtype)


# For elementwise functions and norms only the inputs are stored for the backward pass: the rest,
# a quarter of what a step would store, is cheaper to compute again.
gelu = jax.checkpoint(functools.partial(nn.gelu, approximate=False))
gated = jax.checkpoint(lambda gate, up: nn.silu(gate) * up)


def matrix(module: nn.Module, shape: tuple[int, ...]) -> Array:
  """The parameter `kernel` of a module; made dense where it is quantised."""
  if module.has_variable('params', 'kernel'):
    stored = module.get_variable('params', 'kernel')
    if is_quantised(stored):
      return stored.dense()
  return module.param('kernel', KERNEL_INIT, shape)


class Kernel(nn.Module):
  """Holds the weights of a linear map, or of a stack of them: called, returns (kernel, bias)."""

  d_in: int
  d_out: int
  lead: tuple[int, ...] = ()

  @nn.compact
  def __call__(self) -> tuple[Array, Array]:
    kernel = matrix(self, (*self.lead, self.d_in, self.d_out))
    return kernel, self.param('bias', nn.initializers.zeros, (*self.lead, self.d_out))


class Linear(nn.Module):
  """A linear site."""

  width: int
  tap: Tap
  site: str
  biased: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = matrix(self, (x.shape[-1], self.width))
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
