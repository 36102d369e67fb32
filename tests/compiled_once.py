"""Runs of one process that share their compiled functions."""

from typing import Any

from pecft_jax.train.step import compile_steps

_compiled = {}


def compile_once(
  method: Any,
  recipe: Any,
  layout: Any,
  frozen: Any,
  stacked: bool = False,
  own_data: bool = False,
  restart: bool = True,
) -> Any:
  """As `compile_steps`, which it takes the place of in `pecft_jax.train.job`."""
  if stacked:  # Of as many seeds as come: other shapes in other tests.
    return compile_steps(
      method, recipe, layout, frozen, stacked=True, own_data=own_data, restart=restart
    )
  # The objects are kept, so that no other has their identity.
  key = (id(method), id(recipe), id(layout.mesh), *map(id, layout.rules), restart)
  if key not in _compiled:
    steps = compile_steps(method, recipe, layout, frozen, restart=restart)
    _compiled[key] = steps, method, recipe, layout
  return _compiled[key][0]
