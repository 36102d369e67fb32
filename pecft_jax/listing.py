"""What there is, by name: for `pecft list` and for tables."""

from collections.abc import Callable, Mapping
from typing import Any

from pecft_jax.about import about_of
from pecft_jax.backbones.card import cards
from pecft_jax.benchmarks import benchmarks
from pecft_jax.continual import METHODS, WRAPPERS
from pecft_jax.paths import unknown
from pecft_jax.peft import PEFTS
from pecft_jax.presets import presets


def listing(kind: str) -> dict[str, dict[str, Any]]:
  """What there is of one kind, by name: a summary and further facts, as JSON.

  Args:
    kind: `peft`, `methods` (wrappers, too), `presets`, `benchmarks` or `backbones`.

  Raises:
    ValueError: for any other kind; suggests the nearest.

  >>> listing('methods')['ewc']['kind'], listing('peft')['lora']['papers'][0]['arxiv']
  ('wrapper', '2106.09685')
  """
  kinds: Mapping[str, Callable[[], dict[str, dict[str, Any]]]] = {
    'peft': lambda: _described(PEFTS),
    'methods': lambda: _described(METHODS) | _described(WRAPPERS),
    'presets': lambda: {name: preset.as_json() for name, preset in presets().items()},
    'benchmarks': lambda: {name: {'summary': line} for name, line in benchmarks().items()},
    'backbones': lambda: {name: {'summary': card.summary} for name, card in cards().items()},
  }
  if kind not in kinds:
    raise unknown('kind of thing to list', kind, kinds)
  return kinds[kind]()


def _described(registry: Mapping[str, Callable[..., Any]]) -> dict[str, dict[str, Any]]:
  return {name: about_of(factory).as_json() for name, factory in registry.items()}
