"""The parameters of an experiment: what is trained, what is carried, what is frozen."""

from typing import Any, Literal, NamedTuple

import jax

from pecft_jax.paths import named_leaves
from pecft_jax.peft.halves import split_kept
from pecft_jax.typing import ContinualMethod, Params


class Parameter(NamedTuple):
  """An array of an experiment.

  Attributes:
    name: its path, as in params/delta/block_0/attn/q/a.
    shape: of the array.
    dtype: name of its type.
    role: `trained`; `kept`, a part of what is trained that no step changes; `memory` of the method;
      or `frozen`, of the backbone.
    size: number of elements.
    bytes: on one device that holds it whole.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  role: Literal['trained', 'kept', 'memory', 'frozen']
  size: int
  bytes: int


def parameters(method: ContinualMethod, frozen: Params) -> tuple[Parameter, ...]:
  """All arrays of a method and its backbone, from shapes alone.

  Args:
    method: any; nothing of it is computed.
    frozen: the backbone's weights, or their shapes.

  >>> import jax
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.continual import finetune
  >>> from pecft_jax.peft import lora
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = finetune(model.backbone, Capacity(tasks=2, classes=4), peft=lora('attn/q$', rank=2))
  >>> first = parameters(method, model.params)[0]
  >>> first.name, first.shape, first.role
  ('params/delta/block_0/attn/q/a', (96, 2), 'trained')
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  params, memory = jax.eval_shape(method.init, key, frozen)
  active, kept = split_kept(params)
  parts = (
    ('trained', {'params': active}),
    ('kept', {'params': kept}),
    ('memory', {'memory': memory}),
    ('frozen', {'frozen': frozen}),
  )
  return tuple(_row(name, leaf, role) for role, tree in parts for name, leaf in named_leaves(tree))


def _row(name: str, leaf: Any, role: Any) -> Parameter:
  bits = jax.numpy.finfo(leaf.dtype).bits if _is_float(leaf) else leaf.dtype.itemsize * 8
  return Parameter(name, tuple(leaf.shape), str(leaf.dtype), role, leaf.size, leaf.size * bits // 8)


def _is_float(leaf: Any) -> bool:
  return jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
