"""ER-ACE: experience replay with an asymmetric cross-entropy (Caccia et al., 2022,
arXiv:2104.05025).
"""

import jax

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.wrappers.er import er
from pecft_jax.continual.wrappers.wrap import check_forgets
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Batch, ContinualMethod


@about(
  'wrapper',
  'wrappers',
  Paper('New insights on reducing abrupt representation change in online continual learning',
        '2104.05025'),
  needs=('classes', 'stored examples'),
  carries='a buffer of examples',
  tiny=lambda inner: er_ace(inner, size=8),
)  # fmt: skip
@recorded
def er_ace(inner: ContinualMethod, *, size: int = 500, strength: float = 1.0) -> ContinualMethod:
  """Replays as `er` does, and classifies new examples among the classes of their batch alone.

  The loss is CE(batch, over the classes in the batch) + strength x CE(replayed
  batch, over all classes seen): new classes do not push representations of old
  ones away. As in the paper there is no exception for the first task, whose own
  examples are replayed as well. A `masked` method inside is limited further, from
  the classes of its task to those in the batch.

  Args:
    inner: any method that trains on every task.
    size: N, examples kept.
    strength: weight of the replayed batch.

  Raises:
    ValueError: if wrapping `inner` has no meaning, for a size below 1, a negative strength, or a
      problem without classes.

  >>> from pecft_jax.continual import er_ace, finetune
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> er_ace(finetune(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10))).name
  'er_ace(finetune)'
  """
  at_least(0, strength=strength)
  need_classes(inner.capacity.problem, 'er_ace')
  check_forgets(inner, 'er_ace')

  def loss(params, memory, env, batch, key):
    there = classes_in(batch, inner.capacity.classes)
    among = there if env.among is None else there & env.among
    return inner.loss(params, memory, env._replace(among=among), batch, key)

  made = er(inner._replace(loss=loss), size=size, strength=strength)
  return made._replace(name=f'er_ace({inner.name})', settings=None)


def classes_in(batch: Batch, classes: int) -> Array:
  """[C] bool, the classes of a batch's valid examples."""
  return (jax.nn.one_hot(batch.y, classes, dtype=bool) & batch.valid[:, None]).any(0)
