"""What blocks share: what they keep for the backward pass, and on which devices examples stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from pecft_jax.backbones.core.layers import along_data
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.peft.lowrank.lora import lora

AUTO = (AxisType.Auto,) * 2
MESH = AbstractMesh((4, 2), ('data', 'model'), axis_types=AUTO)


def _constraints(fn, x, mesh=MESH):
  def under(x):
    with jax.sharding.use_abstract_mesh(mesh):
      return fn(x)

  eqns = jax.make_jaxpr(under)(x).jaxpr.eqns
  return [e.params['sharding'].spec for e in eqns if e.primitive.name == 'sharding_constraint']


def test_examples_are_held_to_the_data_axis():
  assert _constraints(along_data, jnp.zeros((8, 3, 5)))[0][0] == 'data'


def test_examples_under_vmap_are_held_to_it_too():
  alone = lambda x: along_data(x[None])[0]
  over = jax.vmap(alone, spmd_axis_name='data')
  (spec,) = _constraints(over, jnp.zeros((8, 3, 5)))
  assert spec[0] == 'data'
  assert 'data' not in spec[1:]


@pytest.mark.parametrize(
  'mesh',
  [
    AbstractMesh((2,), ('model',), axis_types=AUTO[:1]),
    AbstractMesh((1, 2), ('data', 'model'), axis_types=AUTO),
    AbstractMesh((4, 2), ('data', 'model'), axis_types=(AxisType.Explicit,) * 2),
  ],
)
def test_nothing_is_held_where_there_is_nothing_to_hold_to(mesh):
  assert _constraints(along_data, jnp.zeros((8, 3)), mesh) == []
  assert along_data(np.ones((3, 2))).shape == (3, 2)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('rows', [None, 1])
def test_a_scanned_stack_keeps_no_copy_of_its_weights(dtype, rows):
  model = vit(
    image_size=8, channels=1, patch=4, width=64, depth=24, heads=2, mean=(0.5,), std=(0.5,),
    scan=True, dtype=dtype,
  )  # fmt: skip
  params = jax.eval_shape(model.init, jax.random.key(0))
  peft = lora(r'attn/(q|v)$', rank=2)
  delta = jax.eval_shape(lambda k, p: peft.init(k, model.sites, p), jax.random.key(0), params)
  image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)

  def loss(delta, params, image):
    return model.apply(params, image, delta, peft=peft, rows=rows).pooled.sum()

  compiled = jax.jit(jax.grad(loss)).lower(delta, params, image).compile()
  stack = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params['blocks']))
  # A few layers at once, and activations of five tokens: an eighth of the weights each.
  assert compiled.memory_analysis().temp_size_in_bytes < stack / 3


@pytest.mark.parametrize('scan', [False, True])
def test_of_the_widest_tensors_the_backward_pass_keeps_one_a_block(scan):
  depth = 2
  model = vit(
    image_size=8, channels=1, patch=4, width=16, depth=depth, heads=2, mlp_ratio=3, mean=(0.5,),
    std=(0.5,), scan=scan,
  )  # fmt: skip
  params = model.init(jax.random.key(0))
  peft = lora(r'attn/(q|v)$', rank=2)
  delta = peft.init(jax.random.key(0), model.sites, params)
  run = lambda delta: model.apply(params, jnp.ones((7, 8, 8, 1)), delta, peft=peft).pooled
  _, backward = jax.vjp(run, delta)
  one = 7 * 5 * 48  # [B, T, hidden]
  hidden = [a.size for a in jax.tree.leaves(backward) if a.size and a.size % one == 0]
  assert sum(hidden) == depth * one
