"""Invertible adapters at the embeddings (Pfeiffer et al., 2020, arXiv:2005.00052), by the additive
coupling of NICE (Dinh et al., 2014, arXiv:1410.8516).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Key, PeftTransform


class Shift(NamedTuple):
  """relu(x W_down + b_down) W_up + b_up: what one half of a token adds to the other."""

  down: Array  # [d, m], uniform in +-sqrt(1 / d) at init.
  down_bias: Array  # [m], zeros at init.
  up: Array  # [m, d'], zeros at init.
  up_bias: Array  # [d'], zeros at init.


class InvertibleDelta(NamedTuple):
  """z_1 = x_1 + F(x_2), z_2 = x_2 + G(z_1), with x_1 and x_2 the halves of a token."""

  first: Shift  # F, from the second half to the first.
  second: Shift  # G, from the first half to the second.


@about(
  'transform',
  'adapters',
  Paper('MAD-X: an adapter-based framework for multi-task cross-lingual transfer', '2005.00052'),
  tiny=lambda: invertible(),
)
@recorded
def invertible(
  reduction: int = 2, pattern: str = r'^encoder$', *, back: bool = True
) -> PeftTransform:
  """Changes embeddings by an invertible function, and undoes it on what the encoder gives.

  The inverse stands before the head, whose vectors are those of the embeddings where they are tied.
  Trained are, for an even width D and m = D / (2 reduction), 2 (D m + m + D / 2) numbers. MAD-X
  has it beside adapters in every block: `chain(blocks=pfeiffer(), embeddings=invertible())`.
  AdapterHub's code draws all weights with deviation 0.02; here the change is zero at init.

  Args:
    reduction: of the width of a half in F and G, at least 1.
    pattern: regex searched in the path of `tokens` sites.
    back: whether the outputs are changed back; AdapterHub does so before language-model heads, and
      not before those of classifiers.

  Raises:
    ValueError: for a reduction below 1; at init, for one above half the width.

  >>> import jax
  >>> from pecft_jax.peft import invertible
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> delta = invertible().init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['encoder'].first.down.shape
  (48, 24)
  """
  at_least(1, reduction=reduction)

  def init_one(key, spec, weights):
    del weights  # Of the tokens around all blocks.
    width = spec.out.shape[-1]
    left, right = width // 2, width - width // 2
    if reduction > left:
      raise ValueError(
        f'{spec.site.path}: expected a reduction of at most {left}, half the width of the tokens, '
        f'got {reduction}'
      )
    key_f, key_g = jax.random.split(key)
    return InvertibleDelta(_net(key_f, right, left, reduction), _net(key_g, left, right, reduction))

  def run(delta, next_fn, x, mask):
    y = next_fn(there(delta, x), mask)
    return back_again(delta, y) if back else y

  return per_site('tokens', pattern, init_one, run)


def there(delta: InvertibleDelta, x: Array) -> Array:
  """Tokens [B, T, D] by the invertible function."""
  first, second = _halves(x)
  first = first + _through(delta.first, second)
  return jnp.concatenate([first, second + _through(delta.second, first)], -1)


def back_again(delta: InvertibleDelta, z: Array) -> Array:
  """The inverse of `there`."""
  first, second = _halves(z)
  second = second - _through(delta.second, first)
  return jnp.concatenate([first - _through(delta.first, second), second], -1)


def _halves(x: Array) -> tuple[Array, Array]:
  return x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]


def _through(net: Shift, x: Array) -> Array:
  hidden = jax.nn.relu(product(x, net.down) + net.down_bias.astype(x.dtype))
  return product(hidden, net.up) + net.up_bias.astype(x.dtype)


def _net(key: Key, size: int, out: int, reduction: int) -> Shift:
  width, bound = size // reduction, math.sqrt(1 / size)
  down = jax.random.uniform(key, (size, width), minval=-bound, maxval=bound)
  return Shift(down, jnp.zeros(width), jnp.zeros((width, out)), jnp.zeros(out))
