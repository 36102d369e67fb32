"""Llama's decoder (Touvron et al., 2023, arXiv:2302.13971, arXiv:2307.09288; Grattafiori et al.,
2024, arXiv:2407.21783), with named sites.

Pre-norm blocks with root-mean-square norms, rotary positions (Su et al., 2021,
arXiv:2104.09864), grouped-query attention (arXiv:2305.13245), SwiGLU
(Shazeer, 2020, arXiv:2002.05202), no biases: the same function as the
`LlamaModel` of Hugging Face's transformers, whose weights it reads.

All texts of a batch have one length: shorter ones are padded with a pad id, at either end. Pads are
not embedded, not attended to, and have no positions, so outputs do not depend on them. Inside, they
are moved to the end.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pecft_jax.backbones.core.attention import attend
from pecft_jax.backbones.core.layers import KERNEL_INIT, Linear, RmsNorm, gated
from pecft_jax.backbones.core.sites import find_sites, layered
from pecft_jax.backbones.core.sizes import check_positive, check_sizes
from pecft_jax.backbones.core.stacks import run_blocks, stack_blocks
from pecft_jax.backbones.core.taps import Tap, put_on, tap_of
from pecft_jax.backbones.families.decoder.rope import Rope, rotated
from pecft_jax.inputs import TokenIds
from pecft_jax.masks import Mask
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Backbone, Entry, Features, Params, Site


class Sizes(NamedTuple):
  """Sizes of a block, and of the embedding before it."""

  vocabulary: int
  width: int
  heads: int
  kv_heads: int
  hidden: int
  epsilon: float
  rope: Rope


class Attention(nn.Module):
  """Grouped-query self-attention, causal."""

  sizes: Sizes
  tap: Tap
  at: str

  @nn.compact
  def __call__(self, x: Array, mask: Mask) -> Array:
    sizes = self.sizes
    size = sizes.width // sizes.heads
    frequencies = sizes.rope.frequencies(size)
    # Prompts before the text count like any token; pads come last.
    positions = jnp.arange(x.shape[1])[None]

    def project(name: str, heads: int) -> Array:
      y = Linear(heads * size, self.tap, f'{self.at}/{name}', biased=False, name=name)(x)
      return y.reshape(*y.shape[:2], heads, size)

    q = rotated(project('q', sizes.heads), positions, frequencies)
    k = rotated(project('k', sizes.kv_heads), positions, frequencies)
    v = project('v', sizes.kv_heads)
    y = self.tap(Site('attend', self.at), attend, q, k, v, mask)
    out = Linear(sizes.width, self.tap, f'{self.at}/out', biased=False, name='out')
    return out(y.reshape(*y.shape[:2], -1))


class Mlp(nn.Module):
  """(silu(x G) * (x U)) D."""

  hidden: int
  tap: Tap
  at: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    def linear(name: str, width: int) -> Linear:
      return Linear(width, self.tap, f'{self.at}/{name}', biased=False, name=name)

    y = gated(linear('gate', self.hidden)(x), linear('up', self.hidden)(x))
    return linear('down', x.shape[-1])(y)


class Block(nn.Module):
  """A pre-norm transformer block: [B, T, D] -> [B, 1 or T, D].

  With `behind` [B] the MLP is computed only for the token with so many tokens after it.
  """

  sizes: Sizes
  tap: Tap
  at: str

  @nn.compact
  def __call__(self, x: Array, mask: Mask, behind: Array | None) -> Array:
    sizes = self.sizes
    attention = Attention(sizes, self.tap, f'{self.at}/attn', name='attn')
    mlp = Mlp(sizes.hidden, self.tap, f'{self.at}/mlp', name='mlp')
    # The residual stream passes by the branches, for transforms that read it.
    branch = lambda x, stream: attention(x, mask)
    y = RmsNorm(sizes.epsilon, self.tap, f'{self.at}/ln1', name='ln1')(x)
    x = x + self.tap(Site('sublayer', f'{self.at}/attn'), branch, y, x)
    if behind is not None:
      x = from_the_end(x, behind)
    y = RmsNorm(sizes.epsilon, self.tap, f'{self.at}/ln2', name='ln2')(x)
    return x + self.tap(Site('sublayer', f'{self.at}/mlp'), lambda x, stream: mlp(x), y, x)


@recorded(ignored=('remat',))
def decoder(
  *,
  name: str = 'decoder',
  vocabulary: int,
  width: int,
  depth: int,
  heads: int,
  kv_heads: int,
  hidden: int,
  length: int,
  pad: int = -1,
  eps: float = 1e-5,
  rope_theta: float = 10_000.0,
  rope_factor: float = 1.0,
  rope_low: float = 1.0,
  rope_high: float = 4.0,
  rope_original: int = 8192,
  scan: bool = False,
  remat: Any = None,
  dtype: Any = jnp.float32,
) -> Backbone:
  """A decoder of Llama's family.

  Its inputs are int32 token ids [B, T], T up to `length`; ids that are neither
  in the vocabulary nor the pad id give NaN. `pooled` is the state of the last
  real token of each text after the final norm; for a text of pads alone it is finite, but has no
  meaning. `rows` is None or 1: then the MLP of the last block is computed of those tokens only, and
  `tokens` [B, 1, D] holds them.

  The language-model head is not part of it: a checkpoint that was read holds it
  separately (`Checkpoint.head`).

  Args:
    name: for reports.
    vocabulary: number of token ids.
    width: D.
    depth: L.
    heads: H, of queries; divides the width, into heads of an even size.
    kv_heads: of keys and values; divides H.
    hidden: width of the MLP.
    length: most tokens of one text, pads included.
    pad: id of padding; the default is in no vocabulary.
    eps: of the norms.
    rope_theta: base of the rotary frequencies.
    rope_factor: and the three after it: see `Rope`.
    rope_low: turns.
    rope_high: turns, more than `rope_low`.
    rope_original: tokens.
    scan: store blocks stacked and run them with `lax.scan`: compile time is
      constant in depth.
    remat: a `jax.checkpoint_policies` policy for the blocks, or None.
    dtype: of the computation; parameters are made as float32, and may be of
      any other floating-point type.

  Raises:
    ValueError: for sizes that do not fit together.

  >>> model = decoder(
  ...   vocabulary=11, length=8, width=8, depth=1, heads=2, kv_heads=1, hidden=16, pad=0
  ... )
  >>> model.inputs.shape
  (8,)
  """
  check_sizes(
    name, vocabulary=vocabulary, width=width, depth=depth, heads=heads, kv_heads=kv_heads,
    hidden=hidden, length=length, rope_original=rope_original,
  )  # fmt: skip
  check_positive(
    name, eps=eps, rope_theta=rope_theta, rope_factor=rope_factor, rope_low=rope_low,
    rope_high=rope_high,
  )  # fmt: skip
  if width % heads or (width // heads) % 2:
    raise ValueError(f'width must be heads x an even number, got width {width} and {heads} heads')
  if heads % kv_heads:
    raise ValueError(f'heads must be a multiple of kv_heads, got {heads} and {kv_heads}')
  if not rope_low < rope_high:
    raise ValueError(f'rope_low must be below rope_high, got {rope_low} and {rope_high}')
  rope = Rope(rope_theta, rope_factor, rope_low, rope_high, rope_original)
  sizes = Sizes(vocabulary, width, heads, kv_heads, hidden, eps, rope)
  spec = TokenIds((length,), pad)

  def functions(depth, scan):
    def run_block(behind, params, tap, at, x, mask, rows):
      block = Block(sizes, tap, at)
      call = lambda x, mask: block.apply({'params': params}, x, mask, behind if rows else None)
      return tap(Site('tokens', at), call, x, mask)

    def start(params, inputs):
      """Embedded tokens [B, T, D], pads last, their mask, and the place that each had [B, T]."""
      ids, real, order = pads_last(inputs, pad)
      mask = Mask(jnp.maximum(real.sum(-1), 1), causal=True)
      return embedded(params['embed']['table'], ids, real).astype(dtype), mask, order

    def apply(
      params, inputs, delta=None, *, peft=None, key=None, rows=None, watch=None, below=None
    ):
      _check_inputs(name, inputs, length, rows)
      delta, params = put_on(peft, delta, params, key)
      taps = {}
      tap = tap_of(peft, delta, watch, taps)
      x, mask, order = start(params, inputs)
      x = x if below is None else below.tokens
      behind = inputs.shape[1] - mask.lengths  # [B], pads after the last real token.
      run = functools.partial(run_block, behind)

      def encoder(x, mask):
        x = run_blocks(
          run, params, delta, x, mask, peft=peft, depth=depth,
          first=0 if below is None else below.block, rows=rows, watch=watch, taps=taps, remat=remat,
        )  # fmt: skip
        return RmsNorm(eps, tap, 'norm').apply({'params': params['norm']}, x)

      x = tap(Site('tokens', 'encoder'), encoder, x, mask)
      last = x if rows else from_the_end(x, behind)
      x = x if rows else in_order(x, order)
      return Features(last[:, 0].astype(jnp.float32), x, taps)

    def before(params, inputs, block):
      x, mask, _ = start(params, inputs)
      run = functools.partial(run_block, None)
      return run_blocks(run, params, {}, x, mask, peft=None, depth=block, remat=remat)

    def init(key):
      k_embed, *keys = jax.random.split(key, depth + 1)
      table = KERNEL_INIT(k_embed, (vocabulary, width))
      x, mask = jnp.zeros((1, 1, width)), Mask(causal=True)
      params: Params = {'embed': {'table': table}, 'norm': {'scale': jnp.ones(width)}}
      for i, k_block in enumerate(keys):
        block = Block(sizes, tap_of(None, {}), f'block_{i}')
        params[f'block_{i}'] = block.init(k_block, x, mask, None)['params']
      return stack_blocks(params, depth) if scan else params

    return apply, init, before

  # All blocks are equal: one of them gives the sites of all.
  sites = layered(find_sites(*functions(1, scan=False)[:2], spec.shape, spec.dtype), depth)
  apply, init, before = functions(depth, scan)
  entry = Entry(before, above=('norm',))
  return Backbone(name, init, apply, sites, spec, width, depth, family='decoder', entry=entry)


def pads_last(ids: Array, pad: int) -> tuple[Array, Array, Array]:
  """Ids [B, T] with the pads of each text after its tokens.

  Returns:
    The ids, [B, T] bool whether each is real, and [B, T] the place that each had.
  """
  order = jnp.argsort(ids == pad, -1, stable=True)
  ids = jnp.take_along_axis(ids, order, -1)
  return ids, ids != pad, order


def in_order(x: Array, order: Array) -> Array:
  """Undoes `pads_last` for tokens [B, P + T, D]; P of them that a transform put first stay."""
  first, back = x.shape[1] - order.shape[1], jnp.argsort(order, -1)
  tokens = jnp.take_along_axis(x[:, first:], back[..., None], 1)
  return jnp.concatenate([x[:, :first], tokens], 1) if first else tokens


def embedded(table: Array, ids: Array, real: Array) -> Array:
  """Rows of the table [V, D] for ids [B, T]: zeros for pads, NaN for ids outside of the table."""
  rows = table.at[ids].get(mode='fill', fill_value=jnp.nan, wrap_negative_indices=False)
  return jnp.where(real[..., None], rows, 0)


def from_the_end(x: Array, behind: Array) -> Array:
  """The token of each row with `behind` [B] others after it: [B, T, D] -> [B, 1, D]."""
  return jnp.take_along_axis(x, (x.shape[1] - 1 - behind)[:, None, None], 1)


def _check_inputs(name: str, inputs: Array, length: int, rows: int | None) -> None:
  if inputs.ndim != 2 or not 1 <= inputs.shape[1] <= length:
    raise ValueError(
      f'{name} expects token ids [B, up to {length}], got an array of shape {list(inputs.shape)}'
    )
  if not jnp.issubdtype(inputs.dtype, jnp.integer):
    raise TypeError(f'{name} expects integer token ids, got {inputs.dtype}')
  if rows not in {None, 1}:
    raise ValueError(f'{name} gives all tokens or the last real one (rows=1), got rows={rows}')
