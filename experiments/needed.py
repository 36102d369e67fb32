"""Floating-point operations that a contest needs, counted by hand: 2 for each multiply-add.

Only matrix products and attention count. What an implementation computes beyond them does not make
its share of the roofline larger: weights that are frozen have no gradient, nothing flows below the
lowest trained site, the last block computes the rows that are read, attention is causal where a
text is, and nothing is computed again.
"""

from typing import NamedTuple

from contest import ADAPTER, BY_HAND, PATCH, PROMPTS, Rig, Sizes, Texts


class _Stack:
  """The blocks of a model on one example of some tokens, the last of them for some rows."""

  def __init__(self, sizes: Sizes, tokens: int, rows: int):
    self.sizes, self.tokens = sizes, tokens
    self.rows = [tokens] * (sizes.depth - 1) + [rows]

  def project(self, rows: int) -> float:
    """Queries of the rows; keys and values of all tokens."""
    size = self.sizes
    narrow = size.width * (size.kv_heads or size.heads) // size.heads
    return 2 * size.width * (rows * size.width + 2 * self.tokens * narrow)

  def attend(self, rows: int) -> float:
    """Scores and their sums of values; half of them where every token sees those before it."""
    causal = self.sizes.kv_heads and rows == self.tokens
    return 4 * rows * self.tokens * self.sizes.width * (0.5 if causal else 1)

  def rest(self, rows: int) -> float:
    """The output projection and the MLP."""
    size = self.sizes
    return 2 * rows * size.width * (size.width + (3 if size.kv_heads else 2) * size.hidden)

  def forward(self) -> float:
    return sum(self.project(n) + self.attend(n) + self.rest(n) for n in self.rows)

  def backward(self, first: float) -> float:
    """Gradients of activations alone; those of block 0 are given."""
    whole = lambda n: self.project(n) + 2 * self.attend(n) + self.rest(n)
    return first + sum(whole(n) for n in self.rows[1:])

  def low_rank(self, rank: int, *, everywhere: bool) -> float:
    """A LoRA's own products: once forward, twice backward."""
    size = self.sizes
    narrow = size.width * (size.kv_heads or size.heads) // size.heads
    sides = 2 * size.width + size.width + narrow
    if everywhere:
      sides += 2 * size.width + size.width + narrow + 3 * (size.width + size.hidden)
    return 3 * 2 * self.tokens * rank * sides * size.depth


class _Images(NamedTuple):
  """A ViT on an example of some patches."""

  sizes: Sizes
  patches: int

  def stack(self, rows: int = 1, more: int = 0) -> _Stack:
    """Its blocks, with more tokens than its own."""
    return _Stack(self.sizes, self.patches + 1 + more, rows)

  def embed(self) -> float:
    """Patches as tokens."""
    return 2 * self.patches * 3 * PATCH**2 * self.sizes.width

  def features(self) -> float:
    """One forward pass."""
    return self.embed() + self.stack().forward()


def _lora(vit: _Images) -> float:
  stack = vit.stack()
  first = stack.rows[0]
  # Of the four products of attention's backward pass, that of keys is read by nothing in block 0.
  below = stack.rest(first) + 1.5 * stack.attend(first)
  return vit.features() + stack.backward(below) + stack.low_rank(8, everywhere=False)


def _l2p_cached(vit: _Images) -> float:
  stack = vit.stack(rows=PROMPTS + 1, more=PROMPTS)
  first = stack.rows[0]
  below = stack.project(first) + 2 * stack.attend(first) + stack.rest(first)
  return vit.embed() + stack.forward() + stack.backward(below)


def _adapters(stack: _Stack) -> float:
  return sum(4 * rows * stack.sizes.width * ADAPTER for rows in stack.rows)


def _ease(vit: _Images) -> float:
  stack = vit.stack()
  return vit.features() + stack.backward(0) + 3 * _adapters(stack)


def _subspaces(vit: _Images, tasks: int) -> float:
  """All tasks share what is before the first adapter: patches and block 0 without it."""
  stack = vit.stack()
  parts = stack.project, stack.attend, stack.rest
  shared = vit.embed() + sum(part(stack.rows[0]) for part in parts)
  return shared + tasks * (vit.features() - shared + _adapters(stack))


def _text(texts: Texts) -> float:
  sizes, tokens = texts.sizes, texts.length
  stack = _Stack(sizes, tokens, tokens if texts.next_tokens else 1)
  first = stack.rows[0]
  below = stack.rest(first) + (2 if texts.everywhere else 1.5) * stack.attend(first)
  head = 2 * 2 * tokens * sizes.width * sizes.vocabulary if texts.next_tokens else 0
  low = stack.low_rank(texts.rank, everywhere=texts.everywhere)
  return stack.forward() + stack.backward(below) + low + head


def needed(contest: str, rig: Rig) -> float | None:
  """FLOPs of one call, or None for a contest that is not made of products.

  Args:
    contest: its name.
    rig: sizes.

  >>> from contest import ON_CPU
  >>> round(needed('features', ON_CPU) / 1e9)
  261
  """
  if contest in rig.texts:
    texts = rig.texts[contest]
    return texts.batch * _text(texts)
  if contest == 'matmul':
    return 2 * rig.matmul**3
  patches = (rig.image // PATCH) ** 2
  if contest == 'by_hand':
    vit, batch = BY_HAND
    return batch * _lora(_Images(vit, patches))
  if contest == 'subspaces':
    return rig.subspaces_batch * _subspaces(_Images(rig.subspaces_vit, patches), rig.subspaces)
  one = {
    'features': _Images.features,
    'probe': _Images.features,
    'lora': _lora,
    'l2p': lambda vit: vit.features() + _l2p_cached(vit),
    'l2p_cached': _l2p_cached,
    'ease': _ease,
  }
  return rig.batch * one[contest](_Images(rig.vit, patches)) if contest in one else None


def items(contest: str, rig: Rig) -> tuple[int, str]:
  """What one call processes, and its unit."""
  if contest in rig.texts:
    texts = rig.texts[contest]
    return texts.batch * texts.length, 'tokens'
  if contest == 'matmul':
    return 1, 'products'
  if contest == 'by_hand':
    return BY_HAND[1], 'images'
  return (rig.subspaces_batch if contest == 'subspaces' else rig.batch), 'images'
