"""Views of images that are drawn on the device, so that a buffer can hold the images themselves."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pecft_jax.arguments import at_least
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Given, Inputs, Key

# `(images uint8 [B, H, W, C], key) -> images` of the same shape and dtype. Consumes the key.
ReplayViews = Callable[[Array, Key], Array]


@recorded
def shifts_and_flips(padding: int, *, flip: bool = True) -> ReplayViews:
  """Shifts by up to `padding` pixels along each axis over black, and mirrors half of the images.

  The distribution is that of `random_crop(padding)` and `horizontal_flip()` of `pecft_jax.data`.

  Args:
    padding: the largest shift in pixels.
    flip: whether to mirror.

  Raises:
    ValueError: for a negative padding.

  >>> views = shifts_and_flips(1)
  >>> views(jnp.ones((2, 4, 4, 1), jnp.uint8), jax.random.key(0)).shape
  (2, 4, 4, 1)
  """
  at_least(0, padding=padding)

  def views(images: Array, key: Key) -> Array:
    k_shift, k_flip = jax.random.split(key)
    shift = jax.random.randint(k_shift, (len(images), 2), 0, 2 * padding + 1)
    mirrored = jax.random.bernoulli(k_flip, shape=(len(images),)) & flip
    border = ((padding, padding), (padding, padding), (0, 0))

    def one(image: Array, at: Array, mirror: Array) -> Array:
      part = jax.lax.dynamic_slice(jnp.pad(image, border), (at[0], at[1], 0), image.shape)
      return jnp.where(mirror, part[:, ::-1], part)

    return jax.vmap(one)(images, shift, mirrored)

  return views


def viewed(views: ReplayViews | None, x: Inputs, key: Key) -> Inputs:
  """Inputs with a new view of each image; as they are without `views`."""
  if views is None:
    return x
  if isinstance(x, Given):
    return x._replace(x=views(x.x, key), query=None)  # The cached feature is of the image itself.
  return views(x, key)
