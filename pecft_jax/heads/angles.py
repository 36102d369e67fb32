"""The cosine head (Gidaris and Komodakis, 2018, arXiv:1804.09458; Hou et al., 2019)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Head, Kept, Key


class CosineHead(NamedTuple):
  """A direction per class, and one scale: s cos(h, w_c)."""

  AXES = {'kernel': (None, 'class')}

  kernel: Array  # [D, C], uniform in +-sqrt(1 / D) at init.
  scale: Any  # [], `Kept` where it is not learned.


@about(
  'head',
  'cosine',
  Paper('Dynamic few-shot visual learning without forgetting', '1804.09458'),
  tiny={'': lambda: cosine(), 'fixed scale': lambda: cosine(scale=20.0, learned=False)},
)
@recorded
def cosine(*, scale: float = 1.0, learned: bool = True) -> Head:
  """Classifies by the cosine between feature and class direction, times a scale.

  The lengths of features and of class vectors have no influence, so that classes of earlier tasks,
  whose vectors grew over more updates, have no advantage. Defaults are those of the training heads
  in the code of EASE, RanPAC and PILOT: the scale starts at 1 and is learned. Methods with a margin
  use a fixed scale, as in `cosine(scale=20.0, learned=False)`.

  Args:
    scale: s; at the start, if it is learned.
    learned: whether the scale is trained.

  Raises:
    ValueError: for a scale that is not positive.

  >>> head = cosine(scale=2.0)
  >>> state = head.init(jax.random.key(0), 3, 2)
  >>> float(abs(head.logits(state, jnp.ones((1, 3)))).max()) <= 2.0
  True
  """
  above(0, scale=scale)

  def init(key: Key, width: int, classes: int) -> CosineHead:
    bound = width**-0.5
    kernel = jax.random.uniform(key, (width, classes), minval=-bound, maxval=bound)
    start = jnp.asarray(scale, jnp.float32)
    return CosineHead(kernel, start if learned else Kept(start))

  def logits(state: CosineHead, features: Array) -> Array:
    factor = state.scale.value if isinstance(state.scale, Kept) else state.scale
    return factor * (_unit(features, -1) @ _unit(state.kernel, 0))

  return Head(init, logits)


def _unit(x: Array, axis: int) -> Array:
  """Vectors of length 1 along an axis; zero stays zero, and its gradient finite."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis, keepdims=True), 1e-12))
