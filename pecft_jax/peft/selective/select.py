"""Selective methods: some of the model's own weights are trained, the rest stay frozen.

BitFit: Ben Zaken et al., 2022, arXiv:2106.10199. Tuning of layer norms alone:
Zhao et al., 2023, arXiv:2312.11420. Partial fine-tuning: Yosinski et al., 2014,
arXiv:1411.1792.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.peft.compose import nothing
from pecft_jax.peft.leaves import (
  Block,
  block_of,
  matching_leaves,
  put_leaves,
  read_leaves,
  stacks_named,
)
from pecft_jax.peft.sites import matching_sites
from pecft_jax.settings import recorded
from pecft_jax.typing import Delta, Key, Params, PeftTransform, SiteSpec

Choose = Callable[[Sequence[SiteSpec], list[str]], list[str]]  # (sites, leaf names) -> names


@recorded
def select_weights(pattern: str) -> PeftTransform:
  """Trains the leaves whose path matches.

  Leaves are named as if every layer and every projection had its own
  (`block_3/attn/q/bias`), however the parameters are stored. Works with any
  pytree of arrays; leaves that are not floating-point are never trained.

  Args:
    pattern: regex searched in the leaf path.

  Returns:
    A transform whose delta is `{leaf path: float32 copy}`.

  Raises:
    ValueError: at init, if the pattern matches no leaf.

  >>> import jax
  >>> from pecft_jax.peft import select_weights
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = select_weights(r'bias$')
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> transform.selective
  True
  """

  def choose(sites, names):
    del sites
    return matching_leaves(pattern, names)

  return _chosen(choose)


@about(
  'transform',
  'selective',
  Paper(
    'BitFit: simple parameter-efficient fine-tuning for transformer-based masked language models',
    '2106.10199',
  ),
  needs=('biases',),
  tiny=lambda: bitfit(),
)
@recorded
def bitfit() -> PeftTransform:
  """Trains all biases.

  >>> import jax
  >>> from pecft_jax.peft import bitfit
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = bitfit()
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> transform.selective
  True
  """
  return select_weights(r'(^|/)(bias|b)$')


@about(
  'transform',
  'selective',
  Paper(
    'Tuning LayerNorm in attention: towards efficient multi-modal LLM finetuning', '2312.11420'
  ),
  tiny=lambda: ln_tuning(),
)
@recorded
def ln_tuning() -> PeftTransform:
  """Trains the scales and biases of all layer norms.

  >>> import jax
  >>> from pecft_jax.peft import ln_tuning
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = ln_tuning()
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> transform.selective
  True
  """

  def choose(sites, names):
    paths = {spec.site.path for spec in matching_sites(sites, 'norm', '')}
    return [name for name in names if name.rpartition('/')[0] in paths]

  return _chosen(choose)


@recorded
def partial(k: int, stack: str | None = None) -> PeftTransform:
  """Trains the last blocks of a stack, or of each stack, entirely.

  Args:
    k: how many of a stack, at least 1.
    stack: its name; None for every stack of the backbone.

  Raises:
    ValueError: for fewer than one block; at init, for more than there are.

  >>> import jax
  >>> from pecft_jax.peft import partial
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = partial(1)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> transform.selective
  True
  """
  if k < 1:
    raise ValueError(f'k must be at least 1, got {k}')

  def choose(sites, names):
    del sites
    blocks = sorted({block for name in names if (block := block_of(name))})
    stacks = {name: [b.layer for b in blocks if b.stack == name] for name, _ in blocks}
    last: set[Block] = set()
    for name, there in stacks_named(stacks, stack).items():
      if k > len(there):
        raise ValueError(f'cannot train the last {k} blocks: the model has blocks {there}')
      last |= {Block(name, i) for i in there[-k:]}
    return [name for name in names if block_of(name) in last]

  return _chosen(choose)


@about(
  'transform',
  'selective',
  tiny=lambda: full(),
)
@recorded
def full() -> PeftTransform:
  """Trains every weight of the backbone.

  >>> import jax
  >>> from pecft_jax.peft import full
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = full()
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> transform.selective
  True
  """
  return select_weights('')


@about(
  'transform',
  'selective',
  tiny=lambda: linear_probe(),
)
@recorded
def linear_probe() -> PeftTransform:
  """Trains nothing of the backbone, the head alone.

  >>> import jax
  >>> from pecft_jax.peft import linear_probe
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = linear_probe()
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta
  {}
  """
  return nothing()


def _chosen(choose: Choose) -> PeftTransform:
  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    del key  # Starts from the weights that are there.
    leaves = read_leaves(params, sites)
    # Copies: a leaf in both the trained and the frozen tree could not be donated.
    return {
      name: jnp.array(leaves[name](), jnp.float32, copy=True)
      for name in choose(sites, list(leaves))
    }

  return PeftTransform(init, replace=put_leaves, merge=put_leaves, selective=True)
