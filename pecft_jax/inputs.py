"""Input specifications of backbones: one record for each kind of input.

A record says the shape and dtype of an example, what its values mean, and how
it reaches the model. A kind of your own is another record with the fields of
`pecft_jax.typing.InputSpec`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pecft_jax.paths import shortened
from pecft_jax.typing import Array


class Images(NamedTuple):
  """Images: uint8 [B, H, W, channels], normalised on the device to (x / 255 - mean) / std.

  >>> spec = Images((2, 2, 1), (0.5,), (0.25,))
  >>> float(spec.normalised(np.full((1, 2, 2, 1), 255, np.uint8))[0, 0, 0, 0])
  2.0
  """

  shape: tuple[int, ...]  # [H, W, channels]
  mean: tuple[float, ...]  # One value per channel.
  std: tuple[float, ...]

  kind = 'image'
  what = 'images'
  unit = 'images'
  units = 1
  remedy = 'resize the source'

  @property
  def dtype(self) -> np.dtype[Any]:
    """uint8."""
    return np.dtype(np.uint8)

  @property
  def values(self) -> str:
    """The value range that the weights expect, in words."""
    mean, std = (shortened(map(str, values)).replace("'", '') for values in (self.mean, self.std))
    return f'(x / 255 - {mean}) / {std}'

  def normalised(self, x: Array) -> Array:
    """uint8 [B, H, W, channels] to float32 in the value range that the weights expect.

    Raises:
      TypeError: for any other dtype: what values mean is never guessed from them.
    """
    if x.dtype != jnp.uint8:
      raise TypeError(f'images must be uint8, got {x.dtype}; their range belongs to the backbone')
    mean = jnp.asarray(self.mean) * 255.0
    std = jnp.asarray(self.std) * 255.0
    return (x.astype(jnp.float32) - mean) / std


class TokenIds(NamedTuple):
  """Texts: int32 token ids [B, T]; shorter ones are filled up with a pad id.

  >>> TokenIds((4,), pad=-1).values
  'token ids, -1 for padding'
  """

  shape: tuple[int, ...]  # [T]
  pad: int

  kind = 'tokens'
  what = 'token ids'
  unit = 'tokens'

  @property
  def units(self) -> int:
    """T."""
    return self.shape[0]

  @property
  def remedy(self) -> str:
    """Advice for texts of another length."""
    return f'fill up texts with {self.pad}'

  @property
  def dtype(self) -> np.dtype[Any]:
    """int32."""
    return np.dtype(np.int32)

  @property
  def values(self) -> str:
    """What the values mean, in words."""
    return f'token ids, {self.pad} for padding'

  def normalised(self, x: Array) -> Array:
    """int32 [B, T] as they are.

    Raises:
      TypeError: for any other dtype.
    """
    if x.dtype != self.dtype:
      raise TypeError(f'token ids must be {self.dtype}, got {x.dtype}')
    return x
