"""Where the weights of a site lie in a tree of parameters.

A site's path names its weights as if every layer and every projection had its
own: `block_3/attn/q`. Trees may store them fused (`block_3/attn/qkv`, a leading
axis for q, k and v: see `fused.py`) or stacked over layers (`blocks/attn/q`,
leading axis L); reading and writing here hides both.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from pecft_jax.paths import named_leaves, shortened
from pecft_jax.peft.fused import parts_of
from pecft_jax.peft.leaves import MAIN, block_of
from pecft_jax.quantised import dense, is_quantised
from pecft_jax.typing import Array, Params, Site, SiteSpec

KERNELS, SCALES = MAIN[:3], MAIN[3:]
BIASES = ('bias', 'b')


class Weights(NamedTuple):
  """The weights of one site."""

  main: Array  # [d_in, d_out] of a linear site, [D] of a norm.
  bias: Array | None  # [d_out] or [D]


class _Place(NamedTuple):
  keys: tuple[str, ...]  # Of the dict that holds the arrays.
  main: str
  bias: str | None
  layer: int | None  # Index into the leading axis, where layers are stacked.
  part: int | None  # Index into the axis after that, where several maps are one module.

  @property
  def at(self) -> tuple[int, ...]:
    """The index of the site's part of an array."""
    return tuple(i for i in (self.layer, self.part) if i is not None)


def _get(tree: Params, keys: tuple[str, ...]) -> Any:
  for key in keys:
    if not isinstance(tree, dict) or (found := _key(tree, key)) is None:
      return None
    tree = tree[found]
  return tree


def _key(node: dict[Any, Any], name: str) -> Any:
  """The key of this name; trees of other libraries' models also have numbers as keys."""
  return name if name in node else next((key for key in node if str(key) == name), None)


def _place(params: Params, path: str) -> _Place:
  keys = tuple(path.split('/')) if path else ()  # '': the tree is itself one site's weights.
  forms: list[tuple[tuple[str, ...], int | None]] = [(keys, None)]
  for i, key in enumerate(keys):
    if found := re.fullmatch(r'block_(\d+)', key):
      forms.append(((*keys[:i], 'blocks', *keys[i + 1 :]), int(found[1])))
      break
  for own, layer in forms:
    for place, part in ((own, None), *_fused(params, own)):
      node = _get(params, place)
      if not isinstance(node, dict):
        continue
      main = next((name for name in (*KERNELS, *SCALES) if name in node), None)
      if main is None or (part is not None and not _holds(node[main], place, layer)):
        continue
      bias = next((name for name in BIASES if name in node), None)
      return _Place(place, main, bias, layer, part)
  names = sorted({name.rpartition('/')[0] for name, _ in named_leaves(params)})
  raise ValueError(f'no weights at {path!r}; there are weights at {shortened(names)}')


def _fused(params: Params, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
  """Fused modules whose names declare the site at `keys`, with its index in each."""
  around = _get(params, keys[:-1]) if keys else None
  for key in around if isinstance(around, dict) else ():
    parts = parts_of(str(key))
    if len(parts) > 1 and keys[-1] in parts:
      yield (*keys[:-1], key), parts.index(keys[-1])


def _holds(main: Array, place: tuple[str, ...], layer: int | None) -> bool:
  """Whether weights have an axis for the parts that the name of their module declares."""
  shape = jnp.shape(dense(main))[0 if layer is None else 1 :]
  return len(shape) == 3 and shape[0] == len(parts_of(place[-1]))


def _with_part(array: Array, place: _Place, value: Array) -> Array:
  value = jnp.asarray(value, array.dtype)
  return jnp.asarray(array).at[place.at].set(value) if place.at else value


def read(params: Params, path: str) -> Weights:
  """Reads the weights of a site. Raises ValueError where there are none."""
  place = _place(params, path)
  node = _get(params, place.keys)
  part = lambda name: dense(node[name][place.at] if place.at else node[name])
  return Weights(part(place.main), None if place.bias is None else part(place.bias))


def write(params: Params, path: str, weights: Weights) -> Params:
  """A tree with the weights of one site replaced; shares all other leaves.

  Raises:
    ValueError: if there are no weights at the path, they are quantised, or a bias is to be
      written where the tree has none.
  """
  place = _place(params, path)
  if is_quantised(_get(params, place.keys)[place.main]):
    raise ValueError(
      f'the weights of {path!r} are quantised, and cannot be changed as they are: give those of '
      'dequantised(params, dtype), with the dtype that the result is to have'
    )
  if weights.bias is not None and place.bias is None:
    raise ValueError(f'{path!r} has no bias to write to: this transform cannot be merged there')

  def rebuilt(node: Params, keys: tuple[str, ...]) -> Params:
    if keys:
      key = _key(node, keys[0])
      return {**node, key: rebuilt(node[key], keys[1:])}
    out = {**node, place.main: _with_part(node[place.main], place, weights.main)}
    if place.bias is not None and weights.bias is not None:
      out[place.bias] = _with_part(node[place.bias], place, weights.bias)
    return out

  return rebuilt(params, place.keys)


def weight_sites(params: Params) -> tuple[SiteSpec, ...]:
  """The linear and norm sites of any nested dict of arrays, read off its leaves.

  A dict with a matrix named `kernel`, `w` or `weight` ([d_in, d_out]) is a
  linear site, one with a vector named `scale` a norm site; `bias` or `b`
  belongs to either. It makes `init` and `merge` work with any model that is a
  function of such a tree, without a trace of it.

  Args:
    params: a nested dict of arrays.

  >>> import jax.numpy as jnp
  >>> weight_sites({'fc': {'w': jnp.ones((3, 2)), 'b': jnp.ones(2)}})[0].site.path
  'fc'
  """
  import jax

  nodes: dict[str, dict[str, Any]] = {}
  for name, leaf in named_leaves(params):
    path, _, last = name.rpartition('/')
    nodes.setdefault(path, {})[last] = leaf
  specs = []
  for path, node in nodes.items():
    for kind, names, ndim in (('linear', KERNELS, 2), ('norm', SCALES, 1)):
      main = next((node[n] for n in names if n in node and jnp.ndim(node[n]) == ndim), None)
      if main is None:
        continue
      bias = next((node[n] for n in BIASES if n in node), None)
      abstract = lambda a: None if a is None else jax.ShapeDtypeStruct(jnp.shape(a), a.dtype)
      x = jax.ShapeDtypeStruct((1, main.shape[0]), main.dtype)
      out = jax.ShapeDtypeStruct((1, main.shape[-1]), main.dtype)
      stack, layer = block_of(path) or ('', None)
      site = Site(kind, path, stack=stack, layer=layer)
      specs.append(SiteSpec(site, (x, abstract(main), abstract(bias)), out))
  return tuple(specs)
