"""A model whose frozen matrices take fewer bits."""

from typing import Literal

import jax

from pecft_jax.paths import map_named
from pecft_jax.peft.leaves import block_of
from pecft_jax.quantised import FORMS, is_quantised
from pecft_jax.typing import Pretrained


def quantised(model: Pretrained, form: Literal['bf16', 'int8', 'nf4']) -> Pretrained:
  """A model with the matrices of its blocks in fewer bits.

  Computation stays in the dtype of the backbone, with the nearest values that the form has: `bf16`
  has 8 significant bits; `int8` 255 values for each column of a matrix; `nf4` 16 values for each 64
  numbers (arXiv:2305.14314). Embeddings, norms and biases stay as they are. Matrices are made
  dense where they are used, again in the backward pass, and every transform that leaves them as
  they are works beside them. What trains or replaces them needs `dequantised(params, dtype)`.

  The identity of the model says the form, and has no digest of the weights before.

  Args:
    model: with float weights.
    form: of the matrices.

  Raises:
    ValueError: for another form, or a model that is quantised.

  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.paths import tree_bytes
  >>> model = pretrained('vit_glyphs16')
  >>> tree_bytes(model.params) / tree_bytes(quantised(model, 'int8').params) > 3
  True
  """
  if form not in FORMS:
    raise ValueError(f'quantised: expected a form of {sorted(FORMS)}, got {form!r}')
  check_float(model)
  store = jax.jit(FORMS[form])

  def one(name: str, leaf: jax.Array) -> object:
    inside = block_of(name) is not None or 'blocks' in name.split('/')
    return store(leaf) if inside and name.endswith('/kernel') else leaf

  identity = {key: value for key, value in model.identity.items() if key != 'backbone_sha256'}
  identity['frozen_weights'] = form
  return model._replace(params=map_named(one, model.params), identity=identity)


def check_float(model: Pretrained) -> None:
  """Raises ValueError for a model that is quantised."""
  if any(map(is_quantised, jax.tree.leaves(model.params, is_leaf=is_quantised))):
    raise ValueError(f'the weights of {model.backbone.name} are quantised: start from float ones')
