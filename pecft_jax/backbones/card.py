"""Cards of checkpoints: the architecture, the value range and the hash that belong to weights.

A card is a JSON file: `name`, `summary`, `family` ('vit' or 'decoder'),
`architecture` (arguments of the family's factory), `mean` and `std` where the
inputs are images, `file` (bundled with the library, or null), `sha256` (of the
weights file, or null where any will do), and free entries that tell where the
weights come from.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from pecft_jax.backbones.families.decoder.model import decoder
from pecft_jax.backbones.families.decoder.names import load_llama
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.backbones.families.vit.names import Checkpoint, load_timm
from pecft_jax.paths import unknown
from pecft_jax.typing import Backbone, Pretrained

_FAMILY_FOLDERS = pathlib.Path(__file__).parent / 'families'


class Family(NamedTuple):
  """What the cards of one kind of model have in common."""

  factory: Callable[..., Backbone]
  load: Callable[..., Checkpoint]  # (path, backbone) -> checkpoint
  ranges: tuple[str, ...]  # Entries of the card, one value a channel, that the factory takes.


_FAMILIES: Mapping[str, Family] = {
  'vit': Family(vit, load_timm, ('mean', 'std')),
  'decoder': Family(decoder, load_llama, ()),
}


class Card(NamedTuple):
  """What is known of a checkpoint."""

  name: str
  summary: str
  family: str
  architecture: Mapping[str, Any]
  mean: tuple[float, ...]  # One value a channel; empty where the inputs are token ids.
  std: tuple[float, ...]
  file: pathlib.Path | None
  sha256: str | None


def read_card(path: str | pathlib.Path) -> Card:
  """Reads a card. Raises ValueError if the file is no card."""
  path = pathlib.Path(path)
  try:
    card = json.loads(path.read_text(encoding='utf-8'))
    family = card['family']
    if family not in _FAMILIES:
      raise unknown('backbone family', family, _FAMILIES)
    ranges = {key: tuple(card[key]) for key in _FAMILIES[family].ranges}
    file = card.get('file')
    return Card(
      name=card['name'],
      summary=card['summary'],
      family=family,
      architecture=card['architecture'],
      mean=ranges.get('mean', ()),
      std=ranges.get('std', ()),
      file=path.parent / file if file else None,
      sha256=card.get('sha256'),
    )
  except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
    raise ValueError(f'{path} is no checkpoint card: {error!r}') from error


def cards() -> dict[str, Card]:
  """The cards that come with the library, by name."""
  found = [
    read_card(path)
    for path in sorted(_FAMILY_FOLDERS.glob('*/cards/*.json'), key=lambda path: path.name)
  ]
  return {card.name: card for card in found}


def find_card(name: str | pathlib.Path) -> Card:
  """The card of a name, or at a path. Raises ValueError where there is none."""
  known = cards()
  if str(name) in known:
    return known[str(name)]
  if pathlib.Path(name).is_file():
    return read_card(name)
  raise unknown('backbone card', str(name), known)


def architecture(name: str | pathlib.Path, /, **options: Any) -> Backbone:
  """The backbone that a card describes, without weights.

  Costs next to nothing however large the model is: `jax.eval_shape` of its
  `init` gives the shapes of its weights.

  Args:
    name: of a card of the library, or the path of a card.
    **options: of the family's factory, before what the card says: `scan`,
      `remat`, `dtype`, `length`, `name`, ...

  Raises:
    ValueError: for an unknown card.
  """
  card = find_card(name)
  family = _FAMILIES[card.family]
  ranges = {key: getattr(card, key) for key in family.ranges}
  return family.factory(**{'name': card.name, **ranges, **card.architecture, **options})


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
  """
  card, backbone = find_card(name), architecture(name, **options)
  path = card.file if weights is None else pathlib.Path(weights)
  if path is None:
    raise ValueError(f'{card.name} comes without weights: give the path of its safetensors file')
  checkpoint = _FAMILIES[card.family].load(path, backbone)
  if card.sha256 is not None and checkpoint.sha256 != card.sha256:
    raise ValueError(
      f'{path} is not the checkpoint that the card {card.name} describes: '
      f'expected sha256 {card.sha256}, got {checkpoint.sha256}'
    )
  identity = {'backbone_sha256': checkpoint.sha256}
  return Pretrained(backbone, checkpoint.params, checkpoint.head, identity)


def random_weights(name: str | pathlib.Path, /, seed: int = 0, **options: Any) -> Pretrained:
  """The architecture of a card with fresh weights: for tests, plans and control experiments."""
  backbone = architecture(name, **{'name': f'{find_card(name).name}-random', **options})
  params = backbone.init(jax.random.key(seed))
  return Pretrained(backbone, params, None, {'backbone_sha256': f'random, seed {seed}'})
