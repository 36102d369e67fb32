"""Explains mistakes in a user's method; checked while hooks are traced, at no cost at run time."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.paths import named_leaves, shortened
from pecft_jax.peft.halves import split_kept
from pecft_jax.typing import ContinualMethod, Params, TrainState


@contextlib.contextmanager
def calling(method: ContinualMethod, hook: str) -> Iterator[None]:
  """Names the hook that uses a traced value as a Python value.

  Raises:
    ValueError: for a Python `if`, `while`, `int()` or `np.asarray()` on a traced value.
  """
  try:
    yield
  except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
    raise ValueError(
      f'{method.name}: {hook} uses a traced value as a Python value, in an `if`, a loop bound, '
      'int() or numpy; use jnp.where, jax.lax.cond or jax.lax.fori_loop: tasks change values, and '
      'hooks are compiled once for all of them'
    ) from error


def check_start(method: ContinualMethod, params: Params, memory: Any) -> None:
  """Checks what `init` returns.

  Raises:
    TypeError: if a leaf of params or memory is no array.
    ValueError: if a leaf is in both, or params have a leaf that cannot be trained.
  """
  leaves = {'params': named_leaves(params), 'memory': named_leaves(memory)}
  for where, named in leaves.items():
    for name, leaf in named:
      if not isinstance(leaf, jax.Array):
        raise TypeError(
          f'{method.name}: {where} {name!r} must be a jax array, got {type(leaf).__name__}: only '
          'arrays are carried, sharded and checkpointed'
        )
  for name, leaf in named_leaves(split_kept(params)[0]):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(
        f'{method.name}: params {name!r} is {leaf.dtype}, and only floating-point arrays are '
        'trained; put it into memory, or into Kept(...) where it belongs to a delta'
      )
  held = {id(leaf): name for name, leaf in leaves['params']}
  pairs = [(held.get(id(leaf)), name) for name, leaf in leaves['memory']]
  if both := [f'{own} and {name}' for own, name in pairs if own is not None]:
    raise ValueError(
      f'{method.name}: the same array is in params and in memory, as {shortened(both)}; its buffer '
      'is given away when params are updated: copy one with jnp.copy'
    )


def check_loss(method: ContinualMethod, loss: Any, phase: str = 'loss') -> Any:
  """Raises ValueError unless a loss is one number."""
  if jnp.shape(loss) != ():
    raise ValueError(
      f'{method.name}: {phase} must give one number, got shape {list(jnp.shape(loss))}; '
      'take a mean, such as mean_of_valid(losses, batch.valid)'
    )
  return loss


def pair(method: ContinualMethod, hook: str, found: Any) -> tuple[Any, Any]:
  """Raises TypeError unless a hook gave two things."""
  if not isinstance(found, tuple) or len(found) != 2:
    raise TypeError(f'{method.name}: {hook} must return two values, got {type(found).__name__}')
  return found


def carried(
  method: ContinualMethod, hook: str, before: TrainState, after: TrainState
) -> TrainState:
  """The state after a hook, if names, shapes and dtypes are unchanged.

  Raises:
    ValueError: if a leaf of params or memory came, went, or has another shape or dtype.
  """
  form = lambda leaf: f'{jnp.result_type(leaf)}{list(jnp.shape(leaf))}'
  cards = lambda state: {
    name: form(leaf)
    for name, leaf in named_leaves({'params': state.params, 'memory': state.memory})
  }
  old, new = cards(before), cards(after)
  if differing := sorted(n for n in old.keys() | new.keys() if old.get(n) != new.get(n)):
    shown = [f'{n}: {old.get(n, "nothing")} became {new.get(n, "nothing")}' for n in differing]
    raise ValueError(
      f'{method.name}: {hook} must keep names, shapes and dtypes of all that is carried; '
      + '; '.join(shown[:8])
    )
  if jax.tree.structure((before.params, before.memory)) != jax.tree.structure(
    (after.params, after.memory)
  ):
    raise ValueError(f'{method.name}: {hook} must keep the types of all containers of its state')
  return after
