"""PROMPT_TUNING, P_TUNING and CPT: learned tokens before a text.

The file of P_TUNING holds what its network made, which is the same function of a text; so it is
written as a prompt, and read as one.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from pecft_jax.inputs import TokenIds
from pecft_jax.interop.hf_layers import array, of_shape
from pecft_jax.interop.hf_peft_config import whole
from pecft_jax.interop.hf_type import Found, HfType, Keys, Layer, Model, Written
from pecft_jax.peft.tokens.p_tuning import PTuningDelta, encoded
from pecft_jax.peft.tokens.prompt import PromptDelta, prompt_tuning
from pecft_jax.typing import Delta, PeftTransform

SITE = 'encoder'
NAME = 'prompt_embeddings'
SIZES = (
  'num_virtual_tokens', 'token_dim', 'num_transformer_submodules', 'num_attention_heads',
  'num_layers',
)  # fmt: skip
_BODIES = {'num_transformer_submodules': (1, None)}


def check_texts(model: Model, kind: str) -> None:
  """Raises ValueError for models whose inputs are no texts."""
  if not isinstance(model.backbone.inputs, TokenIds):
    raise ValueError(f'{kind} of huggingface/peft is for models of text, not {model.naming.model}')


def of_model(length: int, width: int, heads: int, model: Model) -> dict[str, object]:
  """The entries of the configuration that prompts have, for a model of text."""
  return {
    'num_virtual_tokens': length,
    'token_dim': width,
    'num_transformer_submodules': 1,
    'num_attention_heads': heads,
    'num_layers': model.backbone.depth,
  }


def _write(layers: Sequence[Layer], model: Model) -> Written:
  check_texts(model, 'PROMPT_TUNING')
  if [layer.name for layer in layers] != [SITE] or len(layers[0].parts) > 1:
    raise ValueError(
      'huggingface/peft has one prompt, at the input of the model, got prompts at '
      f'{[layer.name for layer in layers]}'
    )
  leaf = layers[0].leaf
  if isinstance(leaf, PTuningDelta):
    leaf = encoded({SITE: leaf})[SITE]
  tokens = array(leaf.tokens)
  return Written({}, of_model(tokens.shape[0], tokens.shape[1], 1, model), bare={NAME: tokens})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  check_texts(model, found.config['peft_type'])
  length = whole('num_virtual_tokens', found.config.get('num_virtual_tokens'))
  if NAME not in found.shared:
    raise ValueError(f'it has no tensor {NAME}')
  tokens = of_shape(NAME, found.shared[NAME], (length, model.backbone.width))
  return prompt_tuning(length), {SITE: PromptDelta(jnp.asarray(tokens))}


PROMPT_TUNING = HfType(
  'PROMPT_TUNING',
  ('prompt_tuning', 'vpt_shallow', 'p_tuning'),
  (PromptDelta, PTuningDelta),
  Keys(
    read=('num_virtual_tokens',),
    free=(
      'token_dim', 'num_attention_heads', 'num_layers', 'prompt_tuning_init',
      'prompt_tuning_init_text', 'tokenizer_name_or_path', 'tokenizer_kwargs',
    ),
    only=_BODIES,
  ),
  '(?!)',
  _write,
  _read,
  kind='tokens',
  shared=NAME,
)  # fmt: skip

# Tokens of a text that were moved a little (arXiv:2410.17222); its file has where they end.
CPT = PROMPT_TUNING._replace(
  peft_type='CPT',
  leaves=(),
  keys=Keys(
    read=('num_virtual_tokens',),
    free=(
      'token_dim', 'num_attention_heads', 'num_layers', 'cpt_token_ids', 'cpt_mask',
      'cpt_tokens_type_mask', 'opt_weighted_loss_type', 'opt_loss_decay_factor',
      'opt_projection_epsilon', 'opt_projection_format_epsilon', 'tokenizer_name_or_path',
    ),
    only=_BODIES,
  ),
)  # fmt: skip

P_TUNING = PROMPT_TUNING._replace(
  peft_type='P_TUNING',
  leaves=(),
  keys=Keys(
    read=('num_virtual_tokens',),
    free=(
      'token_dim', 'num_attention_heads', 'num_layers', 'encoder_reparameterization_type',
      'encoder_hidden_size', 'encoder_num_layers', 'encoder_dropout',
    ),
    only=_BODIES,
  ),
)  # fmt: skip
