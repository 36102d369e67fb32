"""One linear layer of random weights, for tests against definitions in numpy."""

from typing import Any, NamedTuple

import jax
import numpy as np

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import weight_sites
from pecft_jax.typing import Array, Delta, PeftTransform, Site


class Layer(NamedTuple):
  """Weights in float64, as definitions use them; transforms see them in float32."""

  w: Any  # [d_in, d_out]
  b: Any  # [d_out]
  x: Any  # [2, 3, d_in]

  @property
  def params(self) -> Any:
    return {'fc': {'kernel': self.w.astype(np.float32), 'bias': self.b.astype(np.float32)}}

  def start(self, peft: PeftTransform) -> Delta:
    """A fresh delta."""
    return peft.init(jax.random.key(0), weight_sites(self.params), self.params)

  def through(self, peft: PeftTransform, delta: Delta, *, bias: bool = True) -> Array:
    """The layer's outputs under a delta."""
    own = self.params['fc']
    args = self.x.astype(np.float32), own['kernel'], own['bias'] if bias else None
    return peft.intercept(delta, Site('linear', 'fc'), linear, *args)

  def merged(self, peft: PeftTransform, delta: Delta) -> Array:
    """Its weight with the delta merged into it."""
    return peft.merge(delta, self.params)['fc']['kernel']

  def check_moved(self, peft: PeftTransform, delta: Delta, moved: Any, atol: float = 2e-5) -> None:
    """Asserts that outputs and merged weights are those of a weight in float64."""
    outputs = self.through(peft, delta)
    np.testing.assert_allclose(outputs, self.x @ moved + self.b, rtol=1e-5, atol=atol)
    np.testing.assert_allclose(self.merged(peft, delta), moved, rtol=1e-5, atol=atol)


def random_layer(d_in: int, d_out: int) -> Layer:
  rng = np.random.default_rng(0)
  return Layer(*(rng.normal(size=size) for size in ((d_in, d_out), d_out, (2, 3, d_in))))
