import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.families.decoder.rope import Rope, rotated


def test_rotary_positions_turn_pairs_of_components():
  """By hand: a head of size 4 at position 3, with frequencies 1 and 1 / 10."""
  frequencies = Rope(100.0, 1.0, 1.0, 4.0, 60).frequencies(4)
  np.testing.assert_allclose(frequencies, [1, 0.1], rtol=1e-6)
  x = np.array([1.0, 2.0, 5.0, 7.0], np.float32).reshape(1, 1, 1, 4)
  got = rotated(jnp.asarray(x), jnp.full((1, 1), 3), frequencies).ravel()
  z = np.array([1 + 5j, 2 + 7j]) * np.exp(1j * np.array([3.0, 0.3]))
  np.testing.assert_allclose(got, [*z.real, *z.imag], rtol=1e-6)


def test_slow_turns_alone_are_stretched():
  """10, 1 and 1 / 10 turns in 20 pi tokens: kept, in between, divided."""
  frequencies = Rope(1000.0, 8.0, 0.5, 5.0, round(20 * np.pi)).frequencies(6)
  between = (1.0027 - 0.5) / 4.5  # 63 tokens are 1.0027 turns.
  want = [1.0, 0.1 * (between + (1 - between) / 8), 0.01 / 8]
  np.testing.assert_allclose(frequencies, want, rtol=1e-4)
