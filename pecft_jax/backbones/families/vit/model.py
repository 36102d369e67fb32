"""Vision transformer (Dosovitskiy et al., 2021, arXiv:2010.11929), with named sites.

Pre-norm blocks, a class token, learned positions, exact GELU, no dropout: the
same function as timm's `VisionTransformer`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pecft_jax.backbones.core.attention import attend
from pecft_jax.backbones.core.layers import Kernel, Linear, Norm, gelu, linear
from pecft_jax.backbones.core.sites import find_sites
from pecft_jax.backbones.core.sizes import channel_values, check_positive, check_sizes
from pecft_jax.backbones.core.stacks import run_blocks, stack_blocks
from pecft_jax.backbones.core.taps import Tap, put_on, tap_of
from pecft_jax.inputs import Images
from pecft_jax.masks import Mask, of_first_queries
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Entry,
  Features,
  Site,
)


class Attention(nn.Module):
  """Multi-head self-attention; queries for the leading `rows` tokens only."""

  heads: int
  fused: bool
  tap: Tap
  at: str

  @nn.compact
  def __call__(self, x: Array, mask: Mask | Array | None, rows: int | None) -> Array:
    width = x.shape[-1]
    if self.fused:
      weights = zip(*Kernel(width, width, lead=(3,), name='qkv')(), strict=True)
    else:
      weights = [Kernel(width, width, name=name)() for name in 'qkv']

    def project(name: str, weight: Any, x: Array) -> Array:
      y = self.tap(Site('linear', f'{self.at}/{name}'), linear, x, *weight)
      return y.reshape(*y.shape[:2], self.heads, -1)

    wq, wk, wv = weights
    q, k, v = project('q', wq, x[:, :rows]), project('k', wk, x), project('v', wv, x)
    mask = of_first_queries(mask, rows)
    out = self.tap(Site('attend', self.at), attend, q, k, v, mask)
    return Linear(width, self.tap, f'{self.at}/out', name='out')(out.reshape(*q.shape[:2], -1))


class Mlp(nn.Module):
  """Two linear layers with an exact GELU between."""

  hidden: int
  tap: Tap
  at: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    y = Linear(self.hidden, self.tap, f'{self.at}/fc1', name='fc1')(x)
    return Linear(x.shape[-1], self.tap, f'{self.at}/fc2', name='fc2')(gelu(y))


class Block(nn.Module):
  """A pre-norm transformer block: [B, T, D] -> [B, rows or T, D]."""

  heads: int
  hidden: int
  fused: bool
  tap: Tap
  at: str

  @nn.compact
  def __call__(self, x: Array, mask: Mask | Array | None, rows: int | None) -> Array:
    attention = Attention(self.heads, self.fused, self.tap, f'{self.at}/attn', name='attn')
    mlp = Mlp(self.hidden, self.tap, f'{self.at}/mlp', name='mlp')
    # The residual stream passes by the branches, for transforms that read it.
    branch = lambda x, stream: attention(x, mask, rows)
    y = Norm(self.tap, f'{self.at}/ln1', name='ln1')(x)
    x = x[:, :rows] + self.tap(Site('sublayer', f'{self.at}/attn'), branch, y, x)
    y = Norm(self.tap, f'{self.at}/ln2', name='ln2')(x)
    return x + self.tap(Site('sublayer', f'{self.at}/mlp'), lambda x, stream: mlp(x), y, x)


class Embed(nn.Module):
  """Patches as tokens, the class token before them, positions added."""

  patch: int
  width: int
  tap: Tap

  @nn.compact
  def __call__(self, images: Array) -> Array:
    b, h, w, c = images.shape
    p = self.patch
    x = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, (h // p) * (w // p), p * p * c)
    x = Linear(self.width, self.tap, 'patch', name='patch')(x)
    cls = self.param('cls', nn.initializers.normal(1e-6), (1, 1, self.width))
    x = jnp.concatenate([jnp.broadcast_to(cls.astype(x.dtype), (b, 1, self.width)), x], 1)
    pos = self.param('pos', nn.initializers.truncated_normal(0.02), (1, x.shape[1], self.width))
    return x + pos.astype(x.dtype)


_EMBED = ('patch', 'cls', 'pos')


@recorded(ignored=('remat',))
def vit(
  *,
  name: str = 'vit',
  image_size: int,
  channels: int = 3,
  patch: int,
  width: int,
  depth: int,
  heads: int,
  mlp_ratio: float = 4.0,
  mean: Sequence[float],
  std: Sequence[float],
  fused: bool = True,
  scan: bool = False,
  remat: Any = None,
  dtype: Any = jnp.float32,
) -> Backbone:
  """A vision transformer.

  Sites: `patch`, `block_i/attn/(q|k|v|out)`, `block_i/mlp/(fc1|fc2)` (linear);
  `block_i/(ln1|ln2)`, `norm` (norm); `block_i/attn` (attend); `block_i/attn`,
  `block_i/mlp` (sublayer, without their norm); `encoder`, `block_i` (tokens).

  Args:
    name: for reports.
    image_size: side of the square images.
    channels: colour channels.
    patch: side of a patch; divides `image_size`.
    width: D; a multiple of `heads`.
    depth: number of blocks.
    heads: attention heads.
    mlp_ratio: hidden width of the MLP over D.
    mean: per channel, of the value range that the weights expect.
    std: per channel, positive.
    fused: keep q, k and v in one weight [3, D, D], as timm does in one [3 D, D].
    scan: keep the blocks stacked and run them by `lax.scan`: compile time is
      constant in depth.
    remat: a `jax.checkpoint_policies` policy for the blocks, or None.
    dtype: of the computation; parameters are float32.

  Raises:
    ValueError: for sizes that do not fit together.

  >>> model = vit(
  ...   image_size=8, channels=1, patch=4, width=8, depth=1, heads=2, mean=(0.5,), std=(0.5,)
  ... )
  >>> model.sites[0].site.kind in ('tokens', 'linear', 'norm', 'sublayer', 'attend')
  True
  """
  check_sizes(
    name, image_size=image_size, channels=channels, patch=patch, width=width, depth=depth,
    heads=heads,
  )  # fmt: skip
  check_positive(name, mlp_ratio=mlp_ratio)
  mean = channel_values(name, 'mean', mean, channels)
  std = channel_values(name, 'std', std, channels, positive=True)
  if image_size % patch:
    raise ValueError(f'patch must divide image_size, got {patch} and {image_size}')
  if width % heads:
    raise ValueError(f'width must be a multiple of heads, got {width} and {heads}')
  hidden = int(width * mlp_ratio)
  check_sizes(name, hidden=hidden)
  shape = (image_size, image_size, channels)

  def run_block(params, tap, at, x, mask, rows):
    block = Block(heads, hidden, fused, tap, at)
    call = lambda x, mask: block.apply({'params': params}, x, mask, rows)
    return tap(Site('tokens', at, lead=1), call, x, mask)

  def embedded(params, tap, inputs):
    own = {'params': {name: params[name] for name in _EMBED}}
    return Embed(patch, width, tap).apply(own, inputs.astype(dtype))

  def apply(params, inputs, delta=None, *, peft=None, key=None, rows=None, watch=None, below=None):
    if inputs.shape[1:] != shape:
      raise ValueError(f'{name} expects images {list(shape)}, got {list(inputs.shape[1:])}')
    delta, params = put_on(peft, delta, params, key)
    taps = {}
    tap = tap_of(peft, delta, watch, taps)

    def encoder(x, mask):
      x = run_blocks(
        run_block, params, delta, x, mask, peft=peft, depth=depth,
        first=0 if below is None else below.block, rows=rows, watch=watch, taps=taps, remat=remat,
      )  # fmt: skip
      return Norm(tap, 'norm').apply({'params': params['norm']}, x)

    x = embedded(params, tap, inputs) if below is None else below.tokens
    x = tap(Site('tokens', 'encoder', lead=1), encoder, x, None)
    return Features(x[:, 0].astype(jnp.float32), x, taps)

  def before(params, inputs, block):
    x: Any = embedded(params, tap_of(None, {}), inputs)
    return run_blocks(run_block, params, {}, x, None, peft=None, depth=block, remat=remat)

  def init(key):
    keys = jax.random.split(key, depth + 1)
    tap = tap_of(None, {})
    images = jnp.zeros((1, *shape))
    x = jnp.zeros((1, (image_size // patch) ** 2 + 1, width))
    params = dict(Embed(patch, width, tap).init(keys[0], images)['params'])
    for i in range(depth):
      block = Block(heads, hidden, fused, tap, f'block_{i}')
      params[f'block_{i}'] = block.init(keys[i + 1], x, None, None)['params']
    params['norm'] = Norm(tap, 'norm').init(keys[0], x)['params']
    return stack_blocks(params, depth) if scan else params

  sites = () if scan else find_sites(apply, init, shape)
  if scan:
    loop = vit(
      name=name,
      image_size=image_size,
      channels=channels,
      patch=patch,
      width=width,
      depth=depth,
      heads=heads,
      mlp_ratio=mlp_ratio,
      mean=mean,
      std=std,
      fused=fused,
      dtype=dtype,
    )
    sites = loop.sites
  spec = Images(shape, mean, std)
  entry = Entry(before, above=('norm',))
  return Backbone(name, init, apply, sites, spec, width, depth, family='vit', entry=entry)
