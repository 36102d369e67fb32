"""Cards of checkpoints: the architecture, the value range and the hash that belong to weights.

A card is a JSON file: `name`, `summary`, `family` ('vit'), `architecture`
(arguments of the family's factory), `mean`, `std`, `file` (bundled with the
library, or null), `sha256` (of the weights file, or null where any will do),
and free entries that tell where the weights come from.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from pecft_jax.backbones.convert import load_timm
from pecft_jax.backbones.vit import vit
from pecft_jax.paths import unknown
from pecft_jax.typing import Backbone, Params

_FOLDER = pathlib.Path(__file__).parent / 'cards'
_FAMILIES = {'vit': (vit, load_timm)}


class Card(NamedTuple):
  """What is known of a checkpoint."""

  name: str
  summary: str
  family: str
  architecture: Mapping[str, Any]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  file: pathlib.Path | None
  sha256: str | None


class Pretrained(NamedTuple):
  """A backbone with weights, and what tells them apart."""

  backbone: Backbone
  params: Params
  head: Params | None  # The classifier that came with the weights, if any.
  identity: dict[str, Any]  # For the record of a run.


def read_card(path: str | pathlib.Path) -> Card:
  """Reads a card. Raises ValueError if the file is no card."""
  path = pathlib.Path(path)
  try:
    card = json.loads(path.read_text(encoding='utf-8'))
    file = card.get('file')
    return Card(
      name=card['name'],
      summary=card['summary'],
      family=card['family'],
      architecture=card['architecture'],
      mean=tuple(card['mean']),
      std=tuple(card['std']),
      file=path.parent / file if file else None,
      sha256=card.get('sha256'),
    )
  except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
    raise ValueError(f'{path} is no checkpoint card: {error!r}') from error


def cards() -> dict[str, Card]:
  """The cards that come with the library, by name."""
  found = [read_card(path) for path in sorted(_FOLDER.glob('*.json'))]
  return {card.name: card for card in found}


def pretrained(
  name: str | pathlib.Path, weights: str | pathlib.Path | None = None, **options: Any
) -> Pretrained:
  """A pre-trained backbone.

  Args:
    name: of a card of the library, or the path of a card.
    weights: a safetensors file in timm's naming; the bundled one by default.
    **options: of the family's factory: `scan`, `remat`, `dtype`, ...

  Raises:
    ValueError: for an unknown card, weights that are not the card's (by
      sha256), or none at all.
  """
  known = cards()
  if str(name) in known:
    card = known[str(name)]
  elif pathlib.Path(name).is_file():
    card = read_card(name)
  else:
    raise unknown('backbone card', str(name), known)
  if card.family not in _FAMILIES:
    raise unknown('backbone family', card.family, _FAMILIES)
  factory, load = _FAMILIES[card.family]
  backbone = factory(
    name=card.name, mean=card.mean, std=card.std, **{**card.architecture, **options}
  )
  path = card.file if weights is None else pathlib.Path(weights)
  if path is None:
    raise ValueError(f'{card.name} comes without weights: give the path of its safetensors file')
  checkpoint = load(path, backbone)
  if card.sha256 is not None and checkpoint.sha256 != card.sha256:
    raise ValueError(
      f'{path} is not the checkpoint that the card {card.name} describes: '
      f'expected sha256 {card.sha256}, got {checkpoint.sha256}'
    )
  identity = {'backbone_sha256': checkpoint.sha256}
  return Pretrained(backbone, checkpoint.params, checkpoint.head, identity)


def random_weights(name: str, seed: int = 0, **options: Any) -> Pretrained:
  """The architecture of a card with fresh weights: for tests, plans and control experiments."""
  card = cards().get(name)
  if card is None:
    raise unknown('backbone card', name, cards())
  factory, _ = _FAMILIES[card.family]
  backbone = factory(
    name=f'{card.name}-random', mean=card.mean, std=card.std, **{**card.architecture, **options}
  )
  params = backbone.init(jax.random.key(seed))
  return Pretrained(backbone, params, None, {'backbone_sha256': f'random, seed {seed}'})
