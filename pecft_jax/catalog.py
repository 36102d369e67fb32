"""Names for the command line: what can be run, by name, with a line about each.

Inside the library objects are passed, never names; this is the one place
where a name becomes an object.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pecft_jax.backbones.card import cards
from pecft_jax.continual.registry import METHODS, WRAPPERS, summaries
from pecft_jax.paths import unknown
from pecft_jax.peft.registry import PEFTS
from pecft_jax.peft.registry import summaries as peft_summaries
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, PeftTransform

BENCHMARKS: Mapping[str, str] = {
  'split_digits': 'handwritten digits bundled with scikit-learn, 5 tasks x 2 classes',
  'split_cifar100': 'CIFAR-100, 10 tasks x 10 classes by default, from .npz files or TFDS',
}


def peft_by_name(name: str, **options: Any) -> PeftTransform:
  """A transform with its defaults, but for the options given.

  Raises:
    ValueError: for an unknown name; suggests the nearest.
  """
  if name not in PEFTS:
    raise unknown('PEFT', name, PEFTS)
  return PEFTS[name](**options)


def method_by_name(
  name: str,
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: str | None = None,
  wrap: Sequence[str] = (),
  options: Mapping[str, Mapping[str, Any]] | None = None,
) -> ContinualMethod:
  """A method on a backbone, with wrappers around it, the first named innermost.

  Args:
    name: of `METHODS`.
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: of `PEFTS`; the method's own default where None.
    wrap: of `WRAPPERS`.
    options: arguments by the name of a method, wrapper or transform.

  Raises:
    ValueError: for an unknown name, or parts that do not go together.
  """
  options = options or {}
  if name not in METHODS:
    raise unknown('method', name, METHODS)
  for each in wrap:
    if each not in WRAPPERS:
      raise unknown('wrapper', each, WRAPPERS)
  factory = METHODS[name]
  parts: dict[str, Any] = {}
  if peft is not None:
    if 'peft' not in inspect.signature(factory).parameters:
      raise ValueError(f'{name} trains nothing of the backbone: it takes no PEFT, got {peft!r}')
    parts['peft'] = peft_by_name(peft, **options.get(peft, {}))
  method = factory(backbone, capacity, **parts, **options.get(name, {}))
  for each in wrap:
    method = WRAPPERS[each](method, **options.get(each, {}))
  return method


def listing(kind: str) -> dict[str, str]:
  """Names and lines of one kind: `peft`, `methods`, `benchmarks` or `backbones`.

  Raises:
    ValueError: for any other kind; suggests the nearest.
  """
  kinds: dict[str, Callable[[], dict[str, str]]] = {
    'peft': peft_summaries,
    'methods': summaries,
    'benchmarks': lambda: dict(BENCHMARKS),
    'backbones': lambda: {name: card.summary for name, card in cards().items()},
  }
  if kind not in kinds:
    raise unknown('kind of thing to list', kind, kinds)
  return kinds[kind]()
