"""Parts of predictions that are kept."""

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.train.kept import Kept
from pecft_jax.train.part_files import PartFiles

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
PART = {'a': jnp.arange(12.0).reshape(4, 3), 'b': jnp.ones((4, 2), jnp.bfloat16) * 1.5}
LIKE = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=ONE), PART)


def close(found):
  jax.tree.map(np.testing.assert_array_equal, found, PART)
  assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, PART)
  return True


def test_a_part_comes_back_bit_by_bit():
  kept = Kept('run', 100)
  kept.put('a', PART)
  kept.settle()
  assert kept.get('a', LIKE) is None  # It may still be computed.
  kept.settle()
  assert close(kept.get('a', LIKE))


def test_what_does_not_fit_into_memory_is_on_disk(tmp_path):
  files = lambda: PartFiles(tmp_path / 'parts', 1000, print)
  kept = Kept('run', 70, files())
  for name in 'ab':
    kept.put(name, PART)
  kept.settle(every=True)
  (tmp_path / 'parts' / 'a').unlink()
  assert close(kept.get('a', LIKE))
  (tmp_path / 'parts' / 'b').unlink()
  assert kept.get('b', LIKE) is None


def test_another_process_reads_what_is_on_disk(tmp_path):
  files = lambda: PartFiles(tmp_path / 'parts', 1000, print)
  kept = Kept('run', 0, files())
  kept.put('a', PART)
  kept.settle(every=True)
  assert close(Kept('run', 0, files()).get('a', LIKE))
  other = {**LIKE, 'a': jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=ONE)}
  assert Kept('run', 0, files()).get('a', other) is None


def test_names_are_of_run_weights_and_examples():
  prints = np.arange(4, dtype=np.uint32)
  names = {
    Kept(run, 0).name(weights, rows)
    for run in ('one', 'two')
    for weights in (prints, prints + 1)
    for rows in (b'0', b'1')
  }
  assert len(names) == 8


def test_weights_are_known_the_second_time():
  kept, prints = Kept('run', 0), np.arange(4, dtype=np.uint32)
  assert [kept.is_known(prints), kept.is_known(prints), kept.is_known(prints + 1)] == [
    False, True, False,
  ]  # fmt: skip
