"""Trainable tokens: some rows of an embedding table are trained.

From Hugging Face's peft, as TRAINABLE_TOKENS; it has no paper.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import about
from pecft_jax.peft.leaves import change_leaves, matching_leaves, read_leaves
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Kept, Key, Params, PeftTransform, SiteSpec


class TokensDelta(NamedTuple):
  """A table with other rows at some places."""

  AXES = {'rows': (None, None)}

  rows: Array  # [N, D], which replace those of the table; copies of them at init.
  index: Kept  # [N] int32, their places.


@about(
  'transform',
  'selective',
  tiny=lambda: trainable_tokens((0, 2), table=r'(^|/)(embed|pos|table)'),
)
@recorded
def trainable_tokens(tokens: Sequence[int] = (0,), table: str = r'embed/table$') -> PeftTransform:
  """Trains the rows of an embedding table that belong to some tokens.

  Row i of the table becomes rows_i, for the tokens given; the others stay frozen. For tokens that
  are new, or mean something else in the task. N D numbers are trained. Where the language-model
  head is tied to the table, as of `language_model` without a `head`, it has the new rows, too.

  Args:
    tokens: N different ids of the vocabulary, at least one; the first alone by default.
    table: regex searched in the leaf path; every leaf that matches has such rows. Tables of
      positions, `'^pos$'` of a ViT, are possible, too.

  Raises:
    ValueError: for no tokens, negative ones, or one twice; at init, if no leaf matches, or one is
      no table, or has fewer rows.

  >>> import jax
  >>> from pecft_jax.backbones import decoder
  >>> model = decoder(length=4, vocabulary=9, width=8, depth=1, heads=2, kv_heads=2, hidden=8)
  >>> params = model.init(jax.random.key(0))
  >>> delta = trainable_tokens([7, 8]).init(jax.random.key(1), model.sites, params)
  >>> delta['embed/table'].rows.shape
  (2, 8)
  """
  if not tokens or min(tokens) < 0 or len(set(tokens)) < len(tokens):
    raise ValueError(f'expected different tokens, none negative, got {list(tokens)}')

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    del key  # Starts from the rows that are there.
    leaves = read_leaves(params, sites)
    delta: Delta = {}
    for name in matching_leaves(table, leaves):
      leaf = leaves[name]()
      if leaf.ndim < 2 or leaf.size != leaf.shape[-2] * leaf.shape[-1]:
        raise ValueError(f'{name} is no table of rows: it has shape {list(leaf.shape)}')
      if max(tokens) >= leaf.shape[-2]:
        wrong = [token for token in tokens if token >= leaf.shape[-2]]
        raise ValueError(f'{name} has {leaf.shape[-2]} rows, got tokens {wrong}')
      places = jnp.asarray(tokens, jnp.int32)
      rows = leaf.reshape(-1, leaf.shape[-1])[places].astype(jnp.float32)
      delta[name] = TokensDelta(rows, Kept(places))
    return delta

  def replace(delta: Delta, params: Params) -> Params:
    return change_leaves({name: with_rows(leaf) for name, leaf in delta.items()}, params)

  return PeftTransform(init, replace=replace, merge=replace, selective=True)


def with_rows(delta: TokensDelta) -> Callable[[Array], Array]:
  """`(table [..., V, D]) -> table` with the trained rows in place, in its own type."""

  def put(table: Array) -> Array:
    flat = table.reshape(-1, table.shape[-1])
    return flat.at[delta.index.value].set(delta.rows.astype(table.dtype)).reshape(table.shape)

  return put
