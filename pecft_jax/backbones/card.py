"""Cards of checkpoints: the architecture, the value range and the hash that belong to weights.

A card is a JSON file: `name`, `summary`, `family` (a name of `FAMILIES`),
`architecture` (arguments of the family's factory), the value range where its
factory takes one (`mean` and `std` of images), `file` (bundled with the
library, or null), `sha256` (of the weights file, or null where any file is accepted),
and entries that say where the weights come from: `about`, in any form, and some
others of `_ABOUT`. Other entries are refused: they may be misspelt.
"""

import inspect
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from pecft_jax.backbones.core.sizes import channel_values
from pecft_jax.backbones.registry import FAMILIES
from pecft_jax.files import read_object
from pecft_jax.local import local_path
from pecft_jax.paths import unknown
from pecft_jax.typing import Backbone, Pretrained, WeightsIdentity

_ENTRIES = ('name', 'summary', 'family', 'architecture', 'file', 'sha256')
# Where weights come from, and what is known about them: of any form, without effect.
_ABOUT = (
  'about', 'accuracy', 'data', 'licence', 'made_by', 'parameters_with_head', 'source', 'tied',
  'training', 'use_of_digits',
)  # fmt: skip
# Types of arguments in JSON.
_TYPES = {int: int, float: int | float, bool: bool}
_FAMILY_FOLDERS = pathlib.Path(__file__).parent / 'families'


class Card(NamedTuple):
  """Facts about a checkpoint."""

  name: str
  summary: str
  family: str
  architecture: Mapping[str, Any]
  ranges: Mapping[str, tuple[float, ...]]  # Such as `mean` and `std`, one value per channel.
  file: pathlib.Path | None
  sha256: str | None
  path: pathlib.Path  # Path of the card itself.


def read_card(path: str | pathlib.Path) -> Card:
  """Reads a card.

  Args:
    path: of a JSON file.

  Raises:
    ValueError: if the file is missing or is no card: an entry is missing, unknown, or of another
      type; names the file and the entry.

  >>> import pathlib
  >>> _ = pathlib.Path('tiny.json').write_text('''
  ...   {"name": "tiny", "summary": "A small ViT.", "family": "vit", "mean": [0.5], "std": [0.25],
  ...    "architecture": {"image_size": 8, "channels": 1, "patch": 4, "width": 8, "depth": 1,
  ...                     "heads": 2}}''')
  >>> read_card('tiny.json').ranges['std']
  (0.25,)
  """
  path = local_path(path)
  entries = read_object(path, 'a checkpoint card')
  try:
    return _card(path, entries)
  except ValueError as error:
    raise ValueError(f'{path} is not a checkpoint card: {error}') from error


def _card(path: pathlib.Path, entries: Mapping[str, Any]) -> Card:
  family = _text(entries, 'family')
  if family not in FAMILIES:
    raise unknown('backbone family', family, FAMILIES)
  ranges = FAMILIES[family].ranges
  for key in sorted(entries.keys() - {*_ENTRIES, *_ABOUT, *ranges}):
    raise unknown('entry', key, {*_ENTRIES, *_ABOUT, *ranges})
  architecture = _architecture(family, entries.get('architecture'))
  file, digest = entries.get('file'), entries.get('sha256')
  if not isinstance(file, str | None) or file == '':
    raise ValueError(f'expected the name of a file or null for file, got {file!r}')
  if digest is not None and not (isinstance(digest, str) and re.fullmatch('[0-9a-f]{64}', digest)):
    raise ValueError(f'expected 64 hex digits or null for sha256, got {digest!r}')
  return Card(
    name=_text(entries, 'name'),
    summary=_text(entries, 'summary'),
    family=family,
    architecture=architecture,
    ranges={key: _numbers(entries, key) for key in ranges},
    file=path.parent / file if file else None,
    sha256=digest,
    path=path,
  )


def _text(entries: Mapping[str, Any], key: str) -> str:
  value = entries.get(key)
  if not isinstance(value, str) or not value:
    raise ValueError(f'expected text for {key}, got {value!r}')
  return value


def _numbers(entries: Mapping[str, Any], key: str) -> tuple[float, ...]:
  value = entries.get(key)
  if not isinstance(value, list):
    raise ValueError(f'expected a list of numbers, one a channel, for {key}, got {value!r}')
  return channel_values('card', key, value, len(value), positive=key == 'std')


def _architecture(family: str, value: Any) -> dict[str, Any]:
  """Arguments of the family's factory, each of the type that it is declared with."""
  if not isinstance(value, dict):
    raise ValueError(f'expected an object for architecture, got {value!r}')
  parameters = inspect.signature(FAMILIES[family].factory).parameters
  known = {key: each for key, each in parameters.items() if each.annotation in _TYPES}
  for key in sorted(value.keys() - known.keys()):
    raise unknown('entry of architecture', key, known)
  for key, parameter in known.items():
    if key not in value:
      if parameter.default is inspect.Parameter.empty:
        raise ValueError(f'architecture has no {key}')
      continue
    right = isinstance(value[key], _TYPES[parameter.annotation])
    if not right or (isinstance(value[key], bool) and parameter.annotation is not bool):
      kind = parameter.annotation.__name__
      raise ValueError(f'expected {kind} for {key} of architecture, got {value[key]!r}')
  return value


def cards() -> dict[str, Card]:
  """The cards that come with the library, by name.

  >>> 'vit_glyphs16' in cards()
  True
  """
  found = [
    read_card(path)
    for path in sorted(_FAMILY_FOLDERS.glob('*/cards/*.json'), key=lambda path: path.name)
  ]
  return {card.name: card for card in found}


def find_card(name: str | pathlib.Path) -> Card:
  """The card of a name, or at a path.

  Args:
    name: of a card of the library, or the path of a card.

  Raises:
    ValueError: if there is no card of the name and no file at the path, or the file is no card.

  >>> find_card('vit_glyphs16').name
  'vit_glyphs16'
  """
  known = cards()
  if str(name) in known:
    return known[str(name)]
  if local_path(name).is_file():
    return read_card(name)
  raise unknown('backbone card', str(name), known)


def architecture(name: str | pathlib.Path, /, **options: Any) -> Backbone:
  """The backbone that a card describes, without weights.

  It costs almost nothing, whatever the size of the model: `jax.eval_shape` of its
  `init` gives the shapes of its weights.

  Args:
    name: of a card of the library, or the path of a card.
    **options: of the family's factory, which replace those of the card: `scan`,
      `remat`, `dtype`, `length`, `name`, ...

  Raises:
    ValueError: for an unknown card, or one whose sizes do not fit together.

  >>> architecture('vit_glyphs16').width
  96
  """
  card = find_card(name)
  family = FAMILIES[card.family]
  try:
    return family.factory(**{'name': card.name, **card.ranges, **card.architecture, **options})
  except ValueError as error:
    raise ValueError(f'{card.path}: {error}') from error


def pretrained(
  name: str | pathlib.Path, weights: str | pathlib.Path | None = None, **options: Any
) -> Pretrained:
  """A pre-trained backbone.

  Args:
    name: of a card of the library, or the path of a card.
    weights: a safetensors file, in timm's naming for a ViT and in that of
      Hugging Face's transformers for a decoder; the bundled one by default.
    **options: of the family's factory: `scan`, `remat`, `dtype`, ...

  Raises:
    ValueError: for an unknown card, weights that are not the card's (by
      sha256), or none at all.

  >>> pretrained('vit_glyphs16').backbone.depth
  6
  """
  card, backbone = find_card(name), architecture(name, **options)
  path = card.file if weights is None else local_path(weights)
  if path is None:
    raise ValueError(f'{card.name} comes without weights: give the path of its safetensors file')
  checkpoint = FAMILIES[card.family].load(path, backbone)
  if card.sha256 is not None and checkpoint.sha256 != card.sha256:
    raise ValueError(
      f'{path} is not the checkpoint that the card {card.name} describes: '
      f'expected sha256 {card.sha256}, got {checkpoint.sha256}'
    )
  # A card of the library is found by its name wherever the library lies.
  source = {'card': card.name} if weights is None else {'file': str(path.resolve())}
  if card.name not in cards() and weights is None:
    source = {'file': str(path.resolve())}
  identity = WeightsIdentity({'backbone_sha256': checkpoint.sha256}, checkpoint.params, source)
  return Pretrained(backbone, checkpoint.params, checkpoint.head, identity)


def random_weights(name: str | pathlib.Path, /, seed: int = 0, **options: Any) -> Pretrained:
  """The architecture of a card with fresh weights: for tests, plans and control experiments.

  Args:
    name: of a card of the library, or the path of a card.
    seed: of the initialisation.
    **options: of the family's factory, which replace those of the card.

  Raises:
    ValueError: for an unknown card.

  >>> model = random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  >>> model.backbone.name, model.params['pos'].shape
  ('vit_glyphs16-random', (1, 5, 8))
  """
  backbone = architecture(name, **{'name': f'{find_card(name).name}-random', **options})
  params = backbone.init(jax.random.key(seed))
  identity = WeightsIdentity({'backbone_sha256': f'random, seed {seed}'}, params, {'random': seed})
  return Pretrained(backbone, params, None, identity)
