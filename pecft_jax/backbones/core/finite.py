"""A check of tensors that come from files."""

import jax.numpy as jnp
import numpy as np

_CHUNK = 1 << 24


def check_finite(name: str, tensor: np.ndarray) -> None:
  """Checks that a tensor holds finite floating-point numbers.

  Args:
    name: of the tensor, for messages.
    tensor: of any shape and dtype.

  Raises:
    ValueError: for integers and other types, NaN, or an infinity; names the place of the first one.

  Example:
    >>> check_finite('w', np.float32([1, np.nan]))
    Traceback (most recent call last):
    ValueError: w is not finite: nan at [1]
  """
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise ValueError(f'{name} has dtype {tensor.dtype}, expected floating-point numbers')
  flat = tensor.reshape(-1)
  # In parts, so that the masks of large tensors take little memory.
  for start in range(0, flat.size, _CHUNK):
    bad = np.flatnonzero(~np.isfinite(flat[start : start + _CHUNK]))
    if bad.size:
      at = [int(i) for i in np.unravel_index(start + bad[0], tensor.shape)]
      more = f', and {bad.size - 1} more' if bad.size > 1 else ''
      raise ValueError(f'{name} is not finite: {flat[start + bad[0]]} at {at}{more}')
