"""TRAINABLE_TOKENS: rows of the embedding table."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import array, each_layer, of_shape, only
from pecft_jax.interop.hf_type import Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.types.prompt_tuning import check_texts
from pecft_jax.peft.selective.trainable_tokens import TokensDelta, trainable_tokens
from pecft_jax.typing import Delta, Kept, PeftTransform

_SUFFIX = 'trainable_tokens_delta'
_ONE = 'huggingface/peft has the same tokens in every table'


def _write(layers: Sequence[Layer], model: Model) -> Written:
  check_texts(model, 'TRAINABLE_TOKENS')
  if len(layers) > 1:
    raise ValueError(f'{_ONE}: expected one, got {[layer.name for layer in layers]}')
  leaf = only(layers[0], _ONE).leaf
  tokens = np.asarray(leaf.index.value).tolist()
  return Written({f'{layers[0].name}.{_SUFFIX}': array(leaf.rows)}, {'token_indices': tokens})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  tokens = found.config.get('token_indices')
  ids = tokens if isinstance(tokens, list) else []
  if not ids or any(isinstance(each, bool) or not isinstance(each, int) for each in ids):
    raise ValueError(f'expected whole numbers for token_indices, got {tokens!r:.60}')
  peft, delta = trainable_tokens(ids), {}
  for name, (rows,) in each_layer(found, (_SUFFIX,)):
    (place,) = found.places[name]
    if max(ids) >= place.shape[0]:
      raise ValueError(f'token_indices has {max(ids)}, but {name} has {place.shape[0]} rows')
    of_shape(f'{name}.{_SUFFIX}', rows, (len(ids), place.shape[1]))
    delta[place.path] = TokensDelta(jnp.asarray(rows), Kept(jnp.asarray(ids, jnp.int32)))
  return peft, delta


TRAINABLE_TOKENS = HfType(
  'TRAINABLE_TOKENS',
  ('trainable_tokens',),
  (TokensDelta,),
  Keys(read=('token_indices',), free=('init_weights',)),
  _SUFFIX,
  _write,
  _read,
  kind='table',
  replaces=True,
)
