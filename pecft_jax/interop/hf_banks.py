"""A bank, one delta for each task, as one adapter of huggingface/peft for each task."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.files import read_object
from pecft_jax.interop.hf_peft_load import load_hf_peft
from pecft_jax.interop.hf_peft_save import CONFIG, save_hf_peft
from pecft_jax.interop.hf_types import TYPES
from pecft_jax.interop.modules import Naming
from pecft_jax.local import local_path
from pecft_jax.paths import shortened
from pecft_jax.peft.compose import take
from pecft_jax.typing import Adapted, Backbone, Delta, LinearHead, Params, PeftTransform

_NAME = re.compile(r'[\w-]+')


class AdapterBank(NamedTuple):
  """Adapters of one transform.

  Attributes:
    peft: the transform of one slot.
    delta: with a leading slot axis [S, ...] on every leaf, as `bank(peft, S)` makes it.
    names: of the slots: letters, digits, `_` and `-`.
    heads: the classifier of each slot, or None.
  """

  peft: PeftTransform
  delta: Delta
  names: tuple[str, ...]
  heads: tuple[LinearHead | None, ...]


def save_hf_bank(
  directory: str | pathlib.Path,
  backbone: Backbone,
  bank: AdapterBank,
  frozen: Params,
  *,
  naming: Naming | None = None,
) -> None:
  """Writes each slot in a directory of its own, as peft does with several adapters of a model.

  There: `PeftModel.from_pretrained(model, 'DIR/a', adapter_name='a')`, and for each other
  `model.load_adapter('DIR/b', 'b')`; `set_adapter` chooses one of them.

  Args:
    directory: made if it does not exist; must not have directories of these names.
    backbone: that is adapted.
    bank: its slots; all types that `save_hf_peft` writes.
    frozen: the backbone's weights.
    naming: of the layers of the model that the adapters are for; by the backbone's family if None.

  Raises:
    ValueError: if names and slots are not as many, a name is no name or comes twice, or a slot has
      no form there.

  >>> import jax
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.peft import bank, lora
  >>> model, peft = pretrained('vit_glyphs16'), lora('block_0/mlp/fc1', rank=2)
  >>> delta = bank(peft, 2).init(jax.random.key(0), model.backbone.sites, model.params)
  >>> slots = AdapterBank(peft, delta, ('task_1', 'task_2'), (None, None))
  >>> save_hf_bank('adapters', model.backbone, slots, model.params)
  >>> load_hf_bank('adapters', model.backbone).names
  ('task_1', 'task_2')
  """
  directory = local_path(directory)
  sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(bank.delta)}
  if sizes != {len(bank.names)} or len(bank.heads) != len(bank.names):
    raise ValueError(
      f'expected one name and one head or None for each slot, got {len(bank.names)} names and '
      f'{len(bank.heads)} heads for leading axes of {sorted(sizes)}'
    )
  if len(set(bank.names)) < len(bank.names) or not all(map(_NAME.fullmatch, bank.names)):
    raise ValueError(
      f'expected different names of letters, digits, "_" and "-", got {list(bank.names)}'
    )
  if there := [name for name in bank.names if (directory / name).exists()]:
    raise ValueError(f'{directory} has {shortened(there)} already: give a new directory')
  for slot, (name, head) in enumerate(zip(bank.names, bank.heads, strict=True)):
    adapted = Adapted(bank.peft, take(bank.delta, slot), head)
    save_hf_peft(directory / name, backbone, adapted, frozen, naming=naming)


def load_hf_bank(
  directory: str | pathlib.Path,
  backbone: Backbone,
  names: Sequence[str] | None = None,
  *,
  naming: Naming | None = None,
  params: Params | None = None,
  any_base: bool = False,
) -> AdapterBank:
  """Reads adapters of one transform as the slots of a bank.

  Products of two factors may differ in rank, and in the layers that they act on: the factors of
  smaller ones are filled up with zeros.

  Args:
    directory: with one directory for each adapter.
    backbone: the model that they were trained on.
    names: of the directories, in the order of the slots; all of them if None, numbers in their
      names in the order of numbers.
    naming: as in `load_hf_peft`.
    params: as in `load_hf_peft`.
    any_base: as in `load_hf_peft`.

  Raises:
    ValueError: if there is none, one cannot be read, or they are not of one transform.

  >>> import jax
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.interop import save_hf_peft
  >>> from pecft_jax.peft import lora
  >>> from pecft_jax.typing import Adapted
  >>> model = pretrained('vit_glyphs16')
  >>> for rank in (1, 2):
  ...   peft = lora('block_0/mlp/fc1', rank=rank)
  ...   delta = peft.init(jax.random.key(rank), model.backbone.sites, model.params)
  ...   adapted = Adapted(peft, delta, None)
  ...   save_hf_peft(f'several/rank_{rank}', model.backbone, adapted, model.params)
  >>> found = load_hf_bank('several', model.backbone)
  >>> found.names, found.delta['block_0/mlp/fc1'].a.shape
  (('rank_1', 'rank_2'), (2, 96, 2))
  """
  directory = local_path(directory)
  if names is None:
    names = sorted((file.parent.name for file in directory.glob(f'*/{CONFIG}')), key=_numbers)
  if not names:
    raise ValueError(f'{directory} has no directory with {CONFIG}')
  found = [
    load_hf_peft(directory / name, backbone, naming=naming, params=params, any_base=any_base)
    for name in names
  ]
  first = read_object(directory / names[0] / CONFIG, 'the configuration of an adapter')
  try:
    peft, delta = _stacked(found, TYPES[first['peft_type']].ranked)
  except ValueError as error:
    raise ValueError(f'{directory}: {", ".join(names)} are no slots of one bank: {error}') from None
  return AdapterBank(peft, delta, tuple(names), tuple(each.head for each in found))


def _numbers(name: str) -> list[tuple[int, int, str]]:
  """A key that orders `task_2` before `task_10`."""
  parts = re.findall(r'\d+|\D+', name)
  return [(0, int(part), '') if part.isdigit() else (1, 0, part) for part in parts]


def _stacked(found: Sequence[Adapted], ranked: Mapping[str, int]) -> tuple[PeftTransform, Delta]:
  kinds = [_kind(each.peft) for each in found]
  if unlike := next((kind for kind in kinds if kind != kinds[0]), None):
    differ = sorted(key for key in kinds[0].keys() | unlike if kinds[0].get(key) != unlike.get(key))
    raise ValueError(
      f'{", ".join(differ)} differ: '
      + ' and '.join(str({key: kind.get(key) for key in differ}) for kind in (kinds[0], unlike))
    )
  # The one that acts on most layers has a pattern of all of them.
  most = max(found, key=lambda each: len(each.delta))
  empty = jax.tree.map(jnp.zeros_like, most.delta)
  slots = []
  for each in found:
    if more := sorted(each.delta.keys() - most.delta.keys()):
      raise ValueError(f'some act on {shortened(more)}, and others do not')
    if missing := sorted(
      path for path in most.delta.keys() - each.delta.keys()
      if not set(getattr(most.delta[path], '_fields', ('',))) <= set(ranked)
    ):  # fmt: skip
      raise ValueError(f'some act on {shortened(missing)}, and others do not')
    slots.append({path: each.delta.get(path, empty[path]) for path in most.delta})
  structures = {jax.tree.structure(slot) for slot in slots}
  if len(structures) > 1:
    raise ValueError('their deltas have other parts')
  return most.peft, jax.tree.map_with_path(lambda at, *leaves: _filled(at, leaves, ranked), *slots)


def _kind(peft: PeftTransform) -> dict[str, Any]:
  """The settings of a transform, with its scale in the place of rank and alpha."""
  settings = dict(peft.settings or {})
  for name in ('pattern', 'ranks', 'alphas'):  # Own scales are in the deltas.
    settings.pop(name, None)
  if settings.get('alpha') is not None and settings.get('name') in ('lora', 'loha', 'dora'):
    settings['scale'] = round(settings.pop('alpha') / settings.pop('rank'), 6)
  elif settings.get('name') == 'hira':
    settings.pop('rank')
  return settings


def _filled(at: Any, leaves: Sequence[Any], ranked: Mapping[str, int]) -> Any:
  """Leaves of all slots [S, ...], zeros beyond the rank of each."""
  axis = ranked.get(getattr(at[-1], 'name', ''))
  if axis is not None:
    rank = max(leaf.shape[axis] for leaf in leaves)
    widths = [[(0, 0)] * leaf.ndim for leaf in leaves]
    for leaf, width in zip(leaves, widths, strict=True):
      width[axis] = 0, rank - leaf.shape[axis]
    leaves = [jnp.pad(leaf, width) for leaf, width in zip(leaves, widths, strict=True)]
  if len(shapes := {leaf.shape for leaf in leaves}) > 1:
    raise ValueError(f'{jax.tree_util.keystr(at)} has shapes {sorted(shapes)}')
  return jnp.stack(leaves)
