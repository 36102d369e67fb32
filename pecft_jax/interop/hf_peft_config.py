"""`adapter_config.json` of huggingface/peft: which entries change the function, and which do not.

Every key is in one of three tables for its type of adapter: read, accepted with certain values,
or without effect on the function that was trained. Any other key is refused, as it may change the
function in a way that this reader does not know.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pecft_jax.files import read_object

# Without effect on the function: where a file comes from, what is adapted (known from the tensors),
# # and settings of training.
_BOOKKEEPING = {
  'task_type', 'peft_type', 'auto_mapping', 'peft_version', 'base_model_name_or_path', 'revision',
  'inference_mode', 'target_modules', 'exclude_modules', 'modules_to_save',
}  # fmt: skip
HARMLESS = {
  'LORA': {
    *_BOOKKEEPING, 'layers_to_transform', 'layers_pattern', 'eva_config', 'megatron_config',
    'megatron_core', 'runtime_config', 'qalora_group_size',
  },
  'IA3': {*_BOOKKEEPING, 'init_ia3_weights'},
}  # fmt: skip

READ = {
  'LORA': {
    'r', 'lora_alpha', 'rank_pattern', 'alpha_pattern', 'use_rslora', 'use_dora', 'lora_dropout',
  },
  'IA3': {'feedforward_modules'},
}  # fmt: skip

# The values that leave the function as it is read here, the first being peft's own default.
ONLY: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
  'LORA': {
    'bias': ('none', None),
    'fan_in_fan_out': (False, None),
    # Other values subtract a part from the base weights, which would have to be done here as well.
    'init_lora_weights': (True, False, 'gaussian', 'eva', 'orthogonal', 'mica', None),
    'loftq_config': ({}, None),
    'corda_config': (None,),
    'lora_ga_config': (None,),
    'lora_bias': (False, None),
    'use_qalora': (False, None),
    'use_bdlora': (None, False),
    'alora_invocation_tokens': (None,),
    'arrow_config': (None,),
    'kasa_config': (None,),
    'velora_config': (None,),
    'monteclora_config': (None,),
    'layer_replication': (None,),
    'target_parameters': (None, []),
    'trainable_token_indices': (None,),
    'ensure_weight_tying': (False, None),
  },
  'IA3': {'fan_in_fan_out': (False, None)},
}

_ATOM = re.compile(r'(?:\\[.dw_-]|\[[\w.-]+\]|[\w.^$|-])[*+?]?|[()]')
_REPEATS = 2
_LENGTH = 1000
_LARGEST = float(np.finfo(np.float32).max)


class Lora(NamedTuple):
  """The configuration of a LoRA, rsLoRA or DoRA adapter.

  Attributes:
    rank: r.
    alpha: of layers that no pattern names.
    ranks: values by pattern, of `rank_pattern`.
    alphas: the same of `alpha_pattern`.
    stabilised: whether the scale is alpha / sqrt(r).
    dora: whether there are magnitudes.
    dropout: in training.
  """

  rank: int
  alpha: float
  ranks: Mapping[re.Pattern[str], int]
  alphas: Mapping[re.Pattern[str], float]
  stabilised: bool
  dora: bool
  dropout: float


def read_config(path: Any) -> dict[str, Any]:
  """The configuration of an adapter that can be read here.

  Raises:
    ValueError: if there is none, it is of another type than LORA and IA3, or one of its keys is
      unknown or has a value that changes the function; names the key.
  """
  config = read_object(path, 'the configuration of an adapter')
  kind = config.get('peft_type')
  if not isinstance(kind, str) or kind not in READ:
    raise ValueError(f'{path}: expected an adapter of type LORA or IA3, got {kind!r}')
  only = ONLY[kind]
  if unknown := sorted(config.keys() - READ[kind] - HARMLESS[kind] - only.keys()):
    raise ValueError(
      f'{path}: {", ".join(unknown)} may change what the adapter computes, and is not known to '
      'this reader; convert it to a plain adapter where it was trained, or remove the entry if it '
      'has no effect'
    )
  for key, allowed in only.items():
    value = config.get(key, allowed[0])
    if not any(type(value) is type(each) and value == each for each in allowed):
      raise ValueError(
        f'{path}: {key}={value!r} is not supported, only {", ".join(map(repr, allowed))}'
      )
  return config


def lora_config(config: Mapping[str, Any]) -> Lora:
  """Reads the configuration of a LoRA, and checks each value.

  Raises:
    ValueError: for a value of another type, or one that is not finite; names the entry.
  """
  return Lora(
    rank=_whole('r', config.get('r')),
    alpha=_finite('lora_alpha', config.get('lora_alpha')),
    ranks=_patterns(config, 'rank_pattern', _whole),
    alphas=_patterns(config, 'alpha_pattern', _finite),
    stabilised=_switch('use_rslora', config.get('use_rslora')),
    dora=_switch('use_dora', config.get('use_dora')),
    dropout=_share('lora_dropout', _given(config, 'lora_dropout', 0.0)),
  )


def scale_of(config: Lora, name: str, rank: int) -> float:
  """The scale of A B in one layer.

  Args:
    config: of the adapter.
    name: of the layer, as in the file.
    rank: of its tensors.

  Raises:
    ValueError: where `r` or `rank_pattern` contradict the tensors, or two entries of
      `alpha_pattern` name the layer with different values: which one was meant depends on their
      order, which peft does not keep.
  """
  said = [value for key, value in config.ranks.items() if key.match(name)] or [config.rank]
  if rank not in said:
    raise ValueError(f'the tensors of {name} have rank {rank}, its configuration says {said[0]}')
  alphas = {value for key, value in config.alphas.items() if key.match(name)} or {config.alpha}
  if len(alphas) > 1:
    raise ValueError(f'alpha_pattern has different values for {name}: {sorted(alphas)}')
  return alphas.pop() / (math.sqrt(rank) if config.stabilised else rank)


def scales_inputs(config: Mapping[str, Any], name: str) -> bool | None:
  """Whether (IA)^3 scales the inputs of a layer; None where the configuration does not say.

  As in peft, names of a list match any end of a layer's name, not only at a dot.

  Raises:
    ValueError: for an entry that is no text and no list of texts.
  """
  found = config.get('feedforward_modules')
  if found is None:
    return None
  if isinstance(found, str):
    return re.fullmatch(_bounded('feedforward_modules', found), name) is not None
  if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
    raise ValueError(f'expected a text or a list of texts for feedforward_modules, got {found!r}')
  return any(name.endswith(each) for each in found)


def _given(config: Mapping[str, Any], entry: str, default: Any) -> Any:
  """An entry that may be left out, or be null; other empty values are not the default."""
  return default if config.get(entry) is None else config[entry]


def _patterns(
  config: Mapping[str, Any], entry: str, read: Callable[[str, Any], Any]
) -> dict[re.Pattern[str], Any]:
  """Values by pattern; a pattern is the end of a name, at a dot, or with `^` all of it."""
  patterns = _given(config, entry, {})
  if not isinstance(patterns, dict):
    raise ValueError(f'expected an object for {entry}, got {patterns!r}')
  return {
    re.compile(rf'(.*\.)?({_bounded(entry, key)})$'): read(f'{entry}[{key!r}]', value)
    for key, value in patterns.items()
  }


def _bounded(entry: str, pattern: str) -> str:
  """A regular expression that takes little time on any text."""
  end = repeats = 0
  while len(pattern) <= _LENGTH and (atom := _ATOM.match(pattern, end)):
    end, repeats = atom.end(), repeats + (atom[0][-1] in '*+?' and len(atom[0]) > 1)
  if end < len(pattern) or repeats > _REPEATS:
    raise ValueError(
      f'{entry} {pattern[:80]!r}: expected names of layers, or a regular expression of names, '
      f'classes, alternatives and at most {_REPEATS} single characters that repeat'
    )
  try:
    re.compile(pattern)
  except re.error as error:
    raise ValueError(f'{entry} {pattern!r} is no regular expression: {error}') from error
  return pattern


def _whole(entry: str, value: Any) -> int:
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise ValueError(f'expected a whole number of at least 1 for {entry}, got {value!r}')
  return value


def _finite(entry: str, value: Any) -> float:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not number or not abs(value) <= _LARGEST:
    raise ValueError(f'expected a finite number for {entry}, got {value!r}')
  return value


def _share(entry: str, value: Any) -> float:
  if not 0 <= _finite(entry, value) < 1:
    raise ValueError(f'expected a number in [0, 1) for {entry}, got {value!r}')
  return value


def _switch(entry: str, value: Any) -> bool:
  if not isinstance(value, bool | None):
    raise ValueError(f'expected true or false for {entry}, got {value!r}')
  return bool(value)
