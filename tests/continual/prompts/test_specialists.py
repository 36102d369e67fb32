import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.prompts.specialists import logits_of_tasks, of_chosen, own_first
from pecft_jax.heads import linear
from pecft_jax.typing import LinearHead


def test_classes_of_the_chosen_task_win_and_others_keep_their_own_order():
  rng = np.random.default_rng(0)
  kernel, bias = rng.normal(size=(3, 6, 4)), rng.normal(size=(3, 4))
  h = rng.normal(size=(5, 6))
  each = logits_of_tasks(
    linear(), LinearHead(jnp.float32(kernel), jnp.float32(bias)), jnp.float32(h)
  )
  wanted = np.einsum('bd,tdc->tbc', h, kernel) + bias[:, None]
  np.testing.assert_allclose(each, wanted, atol=1e-5)
  chosen = np.array([0, 2, 1, 2, 0])
  np.testing.assert_allclose(of_chosen(each, chosen), wanted[chosen, np.arange(5)], atol=1e-5)
  own = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], bool)  # Class 1 came twice.
  home = np.array([0, 0, 1, 2])
  found = np.asarray(own_first(each, chosen, jnp.asarray(own), jnp.asarray(home)))
  for row, task in enumerate(chosen):
    assert own[task][found[row].argmax()]
    np.testing.assert_allclose(found[row][own[task]], wanted[task, row][own[task]], atol=1e-5)
    rest = ~own[task]
    homes = wanted[home, row, np.arange(4)][rest]
    np.testing.assert_allclose(found[row][rest] + 1e4, homes, atol=2e-3)
