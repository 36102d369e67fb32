"""The small instances that methods, wrappers and transforms bring along, by name."""

from collections.abc import Sequence

from pecft_jax.about import about_of, tinies
from pecft_jax.continual import METHODS, WRAPPERS
from pecft_jax.typing import Backbone, Capacity, ContinualMethod

# Those that learn classes, of whatever a backbone reads.
OF_CLASSES = {
  name: factory for name, factory in METHODS.items() if 'texts' not in about_of(factory).needs
}
# Those that adapt any site: they run on the models of the tests that have no blocks.
ANYWHERE = {
  name: factory for name, factory in OF_CLASSES.items() if 'adapters' not in about_of(factory).needs
}
# With variants, as in `finetune: masked`; wrappers around sequential fine-tuning.
METHOD_NAMES = tuple(tinies(OF_CLASSES))
WRAPPED_NAMES = tuple(f'{name}(finetune)' for name in WRAPPERS)


def tiny(name: str, backbone: Backbone, capacity: Capacity) -> ContinualMethod:
  """A small method by name: `ease`, `finetune: masked`, `lwf(er(finetune))`, ...

  Wrappers may be variants, too, as in `ewc: zero(finetune)`.
  """
  outer, bracket, rest = name.partition('(')
  if bracket:
    return tinies(WRAPPERS)[outer](tiny(rest.removesuffix(')'), backbone, capacity))
  return tinies(METHODS)[name](backbone, capacity)


def without(need: str) -> Sequence[str]:
  """The names of methods that do without something of `NEEDS`."""
  return [name for name, factory in METHODS.items() if need not in about_of(factory).needs]
