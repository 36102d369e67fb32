"""Settings of methods as their sources publish them: `pecft run NAME --preset l2p@pilot`.

One module per source, with `PRESETS` by name; `record` and `views` are what they share. Sources
disagree, so a name has its source.
"""

import importlib
import pkgutil

from pecft_jax.paths import unknown
from pecft_jax.presets.applied import recipe_of, value_range_of, views_of
from pecft_jax.presets.record import UNVERIFIED, Preset, ValueRange


def presets() -> dict[str, Preset]:
  """All presets as `name@source`.

  >>> presets()['l2p@pilot'].options['l2p']['top_k']
  5
  """
  sources = sorted(name for _, name, _ in pkgutil.iter_modules(__path__))
  modules = {name: importlib.import_module(f'{__name__}.{name}') for name in sources}
  return {
    f'{name}@{source}': preset
    for source, module in modules.items()
    for name, preset in sorted(getattr(module, 'PRESETS', {}).items())
  }


def preset(name: str) -> Preset:
  """A preset by name.

  Args:
    name: `NAME@SOURCE`, as in `pecft list presets`.

  Raises:
    ValueError: if there is none of the name; suggests the nearest.

  >>> preset('l2p@l2p').learning_rate
  0.015
  """
  found = presets()
  if name not in found:
    raise unknown('preset', name, found)
  return found[name]


__all__ = [
  'UNVERIFIED',
  'Preset',
  'ValueRange',
  'preset',
  'presets',
  'recipe_of',
  'value_range_of',
  'views_of',
]
