"""The largest entries of several arrays, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.peft.largest import check_search, check_share, largest


@pytest.mark.parametrize(('share', 'count'), [(0.2, 5), (0.001, 1), (1.0, 23)])
def test_they_are_the_first_of_all_in_order(share, count):
  rng = np.random.default_rng(0)
  arrays = {'b': rng.random((3, 5)), 'a': rng.random(7), 'c': rng.random(())}
  found = largest({name: jnp.asarray(array) for name, array in arrays.items()}, share)
  least = np.sort(np.concatenate([a.reshape(-1) for a in arrays.values()]))[-count]
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array >= least)


def test_of_equal_ones_no_more_than_asked_are_chosen():
  found = largest({'a': jnp.zeros(3), 'b': jnp.zeros((2, 2))}, 0.6)
  assert [int(found[name].sum()) for name in 'ab'] == [3, 1]


def test_what_chooses_nothing_is_refused():
  for share in (0.0, -0.1, 1.1):
    with pytest.raises(ValueError, match=r'expected a share in \(0, 1\]'):
      check_share(share)
  for search in (0.0, 1.0):
    with pytest.raises(ValueError, match=r'search must be in \(0, 1\)'):
      check_search(search)
