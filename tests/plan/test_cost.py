"""FLOPs of textbooks, and temporaries counted by hand and by XLA."""

import jax
import jax.numpy as jnp
import pytest
from plan_steps import CAPACITY, backbone_of, compiled, frozen_of, shape, step_of

from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.catalog import method_by_name
from pecft_jax.plan import flops, temporaries
from pecft_jax.plan.estimate import gradient_bytes

F32 = 4


def chain(x, w, v):
  """Two layers; tanh and the scale lie between the products."""
  return (2 * jnp.tanh(x @ w)) @ v


ARGS = shape(3, 5), shape(5, 7), shape(7, 11)


def test_a_matrix_product_is_2_m_n_k():
  assert flops(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
  batched = lambda a, b: jnp.einsum('bij,bjk->bik', a, b)
  assert flops(batched, shape(11, 3, 5), shape(11, 5, 7)) == 11 * 2 * 3 * 5 * 7


def test_a_loop_counts_as_often_as_it_turns():
  turn = 2 * 3 * 5 * 5
  scan = lambda x, ws: jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]
  found = flops(scan, shape(3, 5), shape(7, 5, 5))
  assert 7 * turn <= found <= 7 * (turn + 9)  # With the counter.
  twice = lambda x, ws: jax.lax.scan(lambda x, _: (scan(x, ws), None), x, length=11)[0]
  assert flops(twice, shape(3, 5), shape(7, 5, 5)) == pytest.approx(11 * found, rel=0.01)
  loop = lambda x, n: jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)
  args = shape(5, 5), shape(dtype=jnp.int32)
  assert flops(loop, *args, turns=4) == pytest.approx(4 * 2 * 5**3, rel=0.02)


def test_a_scan_over_layers_costs_what_the_layers_do():
  sizes = {'image_size': 12, 'channels': 1, 'patch': 3, 'width': 32, 'depth': 4, 'heads': 2}
  count = {}
  for scan in (False, True):
    model = vit(**sizes, mean=(0.5,), std=(0.5,), scan=scan)
    frozen = jax.eval_shape(model.init, jax.random.key(0))
    loss = lambda x, p, model=model: model.apply(p, x).pooled.sum()
    count[scan] = flops(jax.grad(loss), shape(5, 12, 12, 1), frozen)
  assert count[True] == pytest.approx(count[False], rel=0.01)


def test_predictions_are_not_charged_for_training():
  train, predict, args = step_of('small', 'linear_probe')
  step, once = (flops(each, *args) for each in (train, predict))
  # The head's gradient and update are all that there is besides.
  assert once < step < 1.02 * once


def test_vit_tiny_is_the_model_that_papers_count():
  # 1.26 G multiply-adds of one image: timm's table of ViT-Ti/16 at 224 x 224.
  backbone = backbone_of('vit_tiny_patch16_224')
  frozen = frozen_of('vit_tiny_patch16_224')
  found = flops(lambda p, x: backbone.apply(p, x).tokens, frozen, shape(1, 224, 224, 3))
  # XLA counts an erfc as the polynomial that it is computed by.
  assert found / 2 == pytest.approx(1.26e9, rel=0.07)


def test_what_is_made_is_held_until_it_is_last_read():
  # x @ w and its tanh, then tanh and its double, then the double alone: the result is not counted.
  assert temporaries(chain, *ARGS) == F32 * (21 + 21)


def test_views_are_not_made():
  assert temporaries(lambda x, w: x.reshape(3, 5).T @ w, shape(15), shape(3, 7)) == 0
  # The array behind the view is held as long as the view is read.
  assert temporaries(lambda x: (x + 1).T @ jnp.tanh(x), shape(3, 3)) == F32 * 2 * 9


def test_of_branches_the_largest_counts():
  run = lambda x: jax.lax.cond(x.sum() > 0, lambda: x, lambda: jnp.sin(jnp.cos(x)))
  assert F32 * 2 * 25 <= temporaries(run, shape(5, 5)) <= F32 * 2 * 25 + 16


def test_recomputing_each_layer_holds_little_more_than_its_input():
  size, depth = 32, 12
  layer = lambda x, w: jnp.tanh(jnp.tanh(jnp.tanh(x @ w) @ w) @ w)
  unit = F32 * size * size

  def held(layer):
    def loss(x, ws):
      for w in ws:
        x = layer(x, w)
      return x.sum()

    return temporaries(jax.grad(loss), shape(size, size), [shape(size, size)] * depth)

  assert held(layer) >= 3 * depth * unit
  assert held(jax.checkpoint(layer)) <= (depth + 8) * unit


@pytest.mark.slow
@pytest.mark.parametrize('peft', ['lora', 'full', 'ssf'])
def test_a_step_of_vit_tiny_is_near_the_compiled_one(peft):
  train, _, args = step_of('vit_tiny_patch16_224', peft)
  program = compiled('vit_tiny_patch16_224', peft, 'train')
  assert flops(train, *args) == pytest.approx(program.cost_analysis()['flops'], rel=0.1)
  there = program.memory_analysis().temp_size_in_bytes
  method = method_by_name('finetune', backbone_of('vit_tiny_patch16_224'), CAPACITY, peft=peft)
  # XLA for the CPU makes copies besides; how many depends on its version.
  assert 0.7 * there < gradient_bytes(method, *args) < 1.1 * there
