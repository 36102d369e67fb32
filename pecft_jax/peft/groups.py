"""A transform for each group of consecutive blocks, as in the design space of S4
(Chen et al., 2023, arXiv:2301.01821).
"""

from collections.abc import Sequence

from pecft_jax.arguments import at_least
from pecft_jax.peft.adapters.bottleneck import pfeiffer
from pecft_jax.peft.compose import chain
from pecft_jax.peft.leaves import of_layers, stacks_named, stacks_of
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.peft.selective.select import bitfit
from pecft_jax.peft.sites import site_key
from pecft_jax.peft.tokens.prefix import prefix
from pecft_jax.settings import recorded
from pecft_jax.typing import Delta, Key, Params, PeftTransform, SiteSpec


@recorded
def in_groups(
  *parts: PeftTransform, sizes: Sequence[int] | None = None, stack: str | None = None
) -> PeftTransform:
  """Gives each group of consecutive blocks a transform of its own.

  Sites outside the blocks belong to no group. Its delta is `{'group_1': delta of the first part,
  ...}`, over the sites of that group alone.

  Args:
    *parts: a transform for each group, from the lowest blocks up; `nothing()` leaves a group
      frozen.
    sizes: blocks of each group; those of a spindle by default: groups at both ends are smaller than
      those between them (see `spindle`).
    stack: name of the stack that the blocks are of; None for every stack of the backbone, each
      grouped by itself.

  Raises:
    ValueError: without parts, or for sizes below 1 or not one for each part; at init, if there are
      fewer blocks than groups, or the sizes do not add up to the number of blocks.

  >>> import jax
  >>> from pecft_jax.peft import in_groups, lora, nothing, prefix
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = in_groups(nothing(), lora('q$', rank=2), prefix(length=2), sizes=(3, 2, 1))
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> [sorted(group) for group in delta.values()]
  [[], ['block_3/attn/q', 'block_4/attn/q'], ['block_5/attn']]
  """
  if not parts:
    raise ValueError('in_groups() needs a transform for each group, as in in_groups(lora(), ssf())')
  if sizes is not None:
    if len(sizes) != len(parts):
      raise ValueError(f'expected sizes of {len(parts)} groups, one for each part, got {sizes}')
    for size in sizes:
      at_least(1, sizes=size)
  named = {f'group_{i}': part for i, part in enumerate(parts, 1)}

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    stacks = stacks_named(stacks_of(sites), stack)
    groups = {name: _split(there, len(parts), sizes) for name, there in stacks.items()}
    delta = {}
    for i, (name, part) in enumerate(named.items()):
      layers = {each: own[i] for each, own in groups.items()}
      inside = [spec for spec in sites if spec.site.layer in layers.get(spec.site.stack, ())]
      delta[name] = part.init(site_key(key, name), inside, of_layers(params, layers))
    return delta

  return chain(**named)._replace(init=init)


def spindle(depth: int, groups: int = 4) -> list[int]:
  """Sizes of consecutive groups of blocks, of which the first and last are half the others.

  Each group has one block at least. Where shares are no whole numbers, lower groups are the larger
  ones. Two groups are equal.

  Args:
    depth: blocks, at least as many as groups.
    groups: at least 1.

  Raises:
    ValueError: for fewer blocks than groups.

  >>> spindle(12), spindle(6), spindle(5), spindle(24, 3)
  ([2, 4, 4, 2], [1, 2, 2, 1], [1, 2, 1, 1], [6, 12, 6])
  """
  at_least(1, groups=groups)
  if depth < groups:
    raise ValueError(f'expected at least as many blocks as groups, got {depth} and {groups}')
  sizes = [1] * groups
  shares = [2 if 0 < i < groups - 1 else 1 for i in range(groups)]
  # One block each; each further one to the group that lacks most of its share.
  for _ in range(depth - groups):
    missing = [
      share * depth / sum(shares) - size for share, size in zip(shares, sizes, strict=True)
    ]
    sizes[missing.index(max(missing))] += 1
  return sizes


@recorded
def s4(rank: int = 8, length: int = 10, width: int = 48) -> PeftTransform:
  """The choice of S4 for each of four groups of blocks, a spindle from bottom to top.

  From below: adapters and LoRA; adapters and prefixes; adapters, prefixes and biases; prefixes,
  biases and LoRA. That is the paper's for T5-base, as remembered: neither its text nor a code with
  the groups was at hand to check it against. The paper gives each block equally many trained
  numbers; here each part has its own size.

  Args:
    rank: of LoRA, on queries and values.
    length: of the prefixes.
    width: of the adapters after MLPs.

  Raises:
    ValueError: for sizes below 1; at init, for fewer than four blocks, or blocks without biases.

  >>> import jax
  >>> from pecft_jax.peft import s4
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> delta = s4(rank=2).init(jax.random.key(0), model.backbone.sites, model.params)
  >>> {name: sorted(group) for name, group in delta.items()}['group_1']
  ['adapters', 'low_rank']
  """
  adapters, keys, low_rank = pfeiffer(width), prefix(length=length), lora(rank=rank)
  return in_groups(
    chain(adapters=adapters, low_rank=low_rank),
    chain(adapters=adapters, prefix=keys),
    chain(adapters=adapters, prefix=keys, biases=bitfit()),
    chain(prefix=keys, biases=bitfit(), low_rank=low_rank),
  )


def _split(there: Sequence[int], groups: int, sizes: Sequence[int] | None) -> list[Sequence[int]]:
  """The numbers of blocks of each group."""
  if sizes is None:
    sizes = spindle(len(there), groups)
  if sum(sizes) != len(there):
    raise ValueError(f'expected sizes of groups that add up to {len(there)} blocks, got {sizes}')
  ends = [sum(sizes[: i + 1]) for i in range(groups)]
  return [there[end - size : end] for end, size in zip(ends, sizes, strict=True)]
