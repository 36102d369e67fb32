"""The small instances that methods, wrappers and transforms bring along, by name."""

import functools
from collections.abc import Sequence

from pecft_jax.about import about_of, tinies
from pecft_jax.continual import METHODS, WRAPPERS
from pecft_jax.peft import PEFTS, chain
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, PeftTransform

# Those that learn classes, of whatever a backbone reads.
OF_CLASSES = {
  name: factory for name, factory in METHODS.items() if 'texts' not in about_of(factory).needs
}
# With variants, as in `l2p: beside lora`; wrappers around sequential fine-tuning.
METHOD_NAMES = tuple(tinies(METHODS))
WRAPPED_NAMES = tuple(f'{name}(finetune)' for name in WRAPPERS)
# Each around those before it.
ALL_WRAPPERS = functools.reduce(lambda inner, name: f'{name}({inner})', WRAPPERS, 'finetune')


def tiny(name: str, backbone: Backbone, capacity: Capacity) -> ContinualMethod:
  """A small method by name: `ease`, `l2p: beside lora`, `lwf(er(finetune))`, `finetune[lora]`, ...

  Wrappers may be variants, too, as in `ewc: zero(finetune)`. A transform stands in brackets;
  `finetune[all]` trains all that can be in one chain, one after the other at each site.
  """
  outer, bracket, rest = name.partition('(')
  if bracket:
    return tinies(WRAPPERS)[outer](tiny(rest.removesuffix(')'), backbone, capacity))
  base, bracket, peft = name.partition('[')
  if bracket:
    return METHODS[base](backbone, capacity, peft=tiny_peft(peft.removesuffix(']')))
  return tinies(METHODS)[name](backbone, capacity)


def tiny_peft(name: str) -> PeftTransform:
  """A small transform by name, or `all` in a chain."""
  if name == 'all':
    return chain(**{name.replace(': ', '_'): peft for name, peft in _together().items()})
  return tinies(PEFTS)[name]()


@functools.cache
def _together() -> dict[str, PeftTransform]:
  """All that are not calibrated: others need passes of their own, and weights that count."""
  made = {name: make() for name, make in tinies(PEFTS).items()}
  return {name: peft for name, peft in made.items() if peft.calibrate is None}


# Fine-tuning with every transform: with most of them at once, with the others one at a time.
ALL_PEFTS = (
  'finetune[all]',
  *(f'finetune[{name}]' for name in tinies(PEFTS) if name not in _together()),
)


def needs_of(name: str) -> frozenset[str]:
  """What the method inside needs: of `lwf(er(sema))`, what `sema` does."""
  base = name.rpartition('(')[2].rstrip(')').partition('[')[0].partition(':')[0]
  return frozenset(about_of(METHODS[base]).needs)


def without(*needs: str, names: Sequence[str] = METHOD_NAMES) -> tuple[str, ...]:
  """Those of some names that need none of some things."""
  return tuple(name for name in names if not needs_of(name) & set(needs))
