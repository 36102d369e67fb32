"""Prompts: learned tokens in the sequence.

At the encoder's input: Lester et al., 2021, arXiv:2104.08691, and VPT-shallow; new ones
in every block: VPT-deep (both Jia et al., 2022, arXiv:2203.12119).
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.masks import with_tokens
from pecft_jax.peft.leaves import stacks_named, stacks_of
from pecft_jax.peft.sites import matching_sites, site_key
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Key, PeftTransform

Draw = Callable[[Key, tuple[int, ...]], Array]


class PromptDelta(NamedTuple):
  """Tokens to insert; a leading batch axis gives each example its own."""

  AXES = {'tokens': ('token', 'width')}

  tokens: Array  # [P, D] or [B, P, D]


def _normal(key: Key, shape: tuple[int, ...]) -> Array:
  return 0.02 * jax.random.normal(key, shape)


def _xavier(key: Key, shape: tuple[int, ...]) -> Array:
  # The published bound is sqrt(6 / (3 patch^2 + D)): the two are equal in a ViT-B/16.
  bound = math.sqrt(6 / (2 * shape[-1]))
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


@recorded
def prompt(pattern: str = r'^encoder$', length: int = 10, *, draw: Draw = _normal) -> PeftTransform:
  """Inserts learned tokens at matching sites, and removes their outputs after the site.

  They come after the site's leading tokens (the class token of a ViT). All
  tokens see them. Where there is a mask, they see each other and what the last
  leading token sees, or, with no leading token, each other alone (in a causal model those before
  them): they leak nothing of later tokens.

  Args:
    pattern: regex searched in the path of `tokens` sites.
    length: P, at least 1.
    draw: `(key, shape [P, D]) -> tokens` at init. Consumes the key.

  Raises:
    ValueError: for a length below 1.

  >>> import jax
  >>> from pecft_jax.peft import prompt
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = prompt(r'', length=2)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta) > 0
  True
  """
  if length < 1:
    raise ValueError(f'a prompt needs a length of at least 1, got {length}')

  def init(key, sites, params):
    del params
    return {
      spec.site.path: PromptDelta(
        draw(site_key(key, spec.site.path), (length, spec.args[0].shape[-1]))
      )
      for spec in matching_sites(sites, 'tokens', pattern)
    }

  def intercept(delta, site, next_fn, *args):
    if site.kind != 'tokens' or site.path not in delta:
      return next_fn(*args)
    x, mask = args
    own = x.shape[1]
    tokens = delta[site.path].tokens.astype(x.dtype)
    size, lead = tokens.shape[-2], site.lead
    tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape[-2:]))
    x = jnp.concatenate([x[:, :lead], tokens, x[:, lead:]], 1)
    y = next_fn(x, with_tokens(mask, lead, size))
    # Right also where the last block gives back some rows only: the leading
    # ones or, with none before the prompt, the last ones.
    if not lead:
      return y[:, max(y.shape[1] - own, 0) :]
    return jnp.concatenate([y[:, :lead], y[:, lead + size :]], 1)

  return PeftTransform(init, intercept)


@about(
  'transform',
  'tokens',
  Paper('The power of scale for parameter-efficient prompt tuning', '2104.08691'),
  name='prompt',
  identity=False,
  tiny=lambda: prompt_tuning(length=3),
)
@recorded
def prompt_tuning(length: int = 10) -> PeftTransform:
  """Learned tokens at the input of the encoder.

  Args:
    length: P, at least 1.

  >>> import jax
  >>> from pecft_jax.peft import prompt_tuning
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = prompt_tuning(length=2)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  1
  """
  return prompt(r'^encoder$', length)


@about(
  'transform',
  'tokens',
  Paper('Visual prompt tuning', '2203.12119'),
  identity=False,
  tiny=lambda: vpt_shallow(length=3),
)
@recorded
def vpt_shallow(length: int = 50) -> PeftTransform:
  """Learned tokens after the class token at the input of the encoder.

  Args:
    length: P, at least 1.

  >>> import jax
  >>> from pecft_jax.peft import vpt_shallow
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = vpt_shallow(length=2)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  1
  """
  return prompt(r'^encoder$', length, draw=_xavier)


@about(
  'transform',
  'tokens',
  Paper('Visual prompt tuning', '2203.12119'),
  identity=False,
  tiny=lambda: vpt_deep(length=3),
)
@recorded
def vpt_deep(length: int = 50, stack: str | None = None) -> PeftTransform:
  """Learned tokens after the class token, new ones in every block.

  The paper replaces the outputs at the previous block's prompts; removing them
  and inserting the next is the same.

  Args:
    length: P of each prompt.
    stack: name of the stack whose blocks get them; None for every stack.

  Raises:
    ValueError: at init, if the backbone has no such stack.

  >>> import jax
  >>> from pecft_jax.peft import vpt_deep
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = vpt_deep(length=2)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> len(delta)
  6
  """
  tokens = prompt(deep(stack), length, draw=_xavier)

  def init(key, sites, params):
    stacks_named(stacks_of(sites), stack)  # Its error names the stacks, not a pattern.
    return tokens.init(key, sites, params)

  return tokens._replace(init=init)


def deep(stack: str | None = None) -> str:
  """The pattern of the blocks themselves, of one stack or of all, among `tokens` sites."""
  around = '(^|/)' if stack is None else f'^{re.escape(stack)}/' if stack else '^'
  return rf'{around}block_\d+$'
