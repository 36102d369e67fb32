"""States are made whole, and distinguished by their digest."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from tiny_runs import tiny_frozen, tiny_method

from pecft_jax.devices.digest import tree_sha256
from pecft_jax.paths import tree_bytes, tree_size
from pecft_jax.recipes import adam, sgd
from pecft_jax.train.state import init_state, key_for, no_task
from pecft_jax.typing import Capacity

TREE = {'b': jnp.arange(3.0), 'a': (jnp.ones((2, 2), jnp.int32), jax.random.key(3))}


def test_a_state_before_the_first_task():
  state = init_state(tiny_method('finetune'), adam(0.1), jax.random.key(0), tiny_frozen())
  assert int(state.step) == 0
  assert int(state.task.index) == -1
  assert not state.task.seen.any()
  chex.assert_trees_all_equal_structs(state.opt_state[0].mu, state.params)


def test_the_same_seed_makes_the_same_state():
  make = lambda seed: tree_sha256(
    init_state(tiny_method('olora'), sgd(0.1), jax.random.key(seed), tiny_frozen())
  )
  assert make(0) == make(0)
  assert make(0) != make(1)


def test_digests_do_not_depend_on_devices_or_kind_of_array():
  tree = {'b': np.arange(3, dtype=np.float32), 'a': (np.ones((2, 2), np.int32), TREE['a'][1])}
  assert tree_sha256(tree) == tree_sha256(TREE)
  assert tree_sha256(dict(reversed(TREE.items()))) == tree_sha256(TREE)


def test_digests_see_every_change():
  changes = [
    {**TREE, 'b': TREE['b'].at[1].add(1e-6)},
    {**TREE, 'b': TREE['b'].astype(jnp.bfloat16)},
    {**TREE, 'b': TREE['b'][None]},
    {**TREE, 'b': TREE['b'].view(jnp.int32)},
    {**TREE, 'c': jnp.zeros(0)},
    {'b2': TREE['b'], 'a': TREE['a']},
    {**TREE, 'a': (TREE['a'][0], jax.random.key(4))},
  ]
  assert len({tree_sha256(tree) for tree in [TREE, *changes]}) == len(changes) + 1


def test_sizes_of_trees():
  tree = {'a': jnp.zeros((2, 3), jnp.bfloat16), 'b': jax.ShapeDtypeStruct((4,), jnp.float32)}
  assert tree_size(tree) == 10
  assert tree_bytes(tree) == 28


def test_keys_depend_on_task_and_number_alone():
  state = init_state(tiny_method('finetune'), sgd(0.1), jax.random.key(0), tiny_frozen())
  task = no_task(Capacity(2, 4))
  at = lambda t, n: jax.random.key_data(key_for(state, task._replace(index=jnp.int32(t)), n))
  keys = {tuple(at(t, n).tolist()) for t in range(3) for n in range(3)}
  assert len(keys) == 9
  moved = state._replace(step=state.step + 5, params={})
  assert (jax.random.key_data(key_for(moved, task, 1)) == at(-1, 1)).all()
