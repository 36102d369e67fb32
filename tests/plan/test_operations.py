import jax
import jax.numpy as jnp
import pytest
from plan_steps import PEFTS, backbone_of, compiled, frozen_of, shape, step_of

from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.plan import flops, program_of


def matmul(function, *args, trips=1):
  """FLOPs of the matrix products of a function, by dtype."""
  return flops(program_of(function, *args), trips).matmul


def test_a_matrix_product_is_2_m_n_k():
  assert matmul(jnp.matmul, shape(3, 5), shape(5, 7)) == {'float32': 2 * 3 * 5 * 7}
  batched = lambda a, b: jnp.einsum('bij,bjk->bik', a, b)
  assert matmul(batched, shape(11, 3, 5), shape(11, 5, 7)) == {'float32': 11 * 2 * 3 * 5 * 7}


def test_products_are_told_apart_by_dtype():
  half = shape(3, 5, dtype=jnp.bfloat16)
  function = lambda a, b, c: (a @ b, a @ b.astype(a.dtype), c @ b)
  assert matmul(function, half, shape(5, 7), shape(2, 5)) == {
    'bfloat16': 2 * 3 * 5 * 7,
    'float32': 2 * 3 * 5 * 7 + 2 * 2 * 5 * 7,
  }


def test_a_convolution_is_its_filter_at_each_output():
  run = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  # 9 x 11 pixels under a 3 x 5 filter at stride 2: 4 x 4 outputs of 7 channels.
  found = matmul(run, shape(2, 9, 11, 6), shape(3, 5, 6, 7))
  assert found == {'float32': 2 * (2 * 4 * 4 * 7) * (3 * 5 * 6)}


def test_loops_count_as_often_as_they_run():
  scan = lambda x, ws: jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]
  assert matmul(scan, shape(3, 5), shape(7, 5, 5)) == {'float32': 7 * 2 * 3 * 5 * 5}
  loop = lambda x, n: jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)
  args = shape(5, 5), shape(dtype=jnp.int32)
  assert matmul(loop, *args, trips=4) == {'float32': 4 * 2 * 5**3}


def test_of_branches_the_costliest_counts():
  run = lambda x: jax.lax.cond(x.sum() > 0, lambda: x, lambda: x @ x @ x)
  assert matmul(run, shape(5, 5)) == {'float32': 2 * 2 * 5**3}


def test_other_operations_are_one_per_element():
  count = lambda function, *args: flops(program_of(function, *args)).other
  assert count(lambda x: jnp.tanh(x) * x, shape(3, 5)) == 2 * 15
  assert count(lambda x: x.sum(), shape(3, 5)) == 15
  assert count(lambda x: x.T.reshape(-1)[:4], shape(3, 5)) == 0


def test_a_vit_costs_what_the_textbook_says():
  image, patch, width, depth, hidden, batch = 12, 3, 40, 3, 80, 5
  model = vit(
    image_size=image, channels=2, patch=patch, width=width, depth=depth, heads=4, mlp_ratio=2,
    mean=(0.5,) * 2, std=(0.5,) * 2,
  )  # fmt: skip
  frozen = jax.eval_shape(model.init, jax.random.key(0))
  found = matmul(lambda p, x: model.apply(p, x).tokens, frozen, shape(batch, image, image, 2))
  patches = (image // patch) ** 2
  tokens = patches + 1
  embed = 2 * patches * (patch * patch * 2) * width
  projections = 2 * tokens * width * (3 * width + width)
  attention = 2 * (2 * tokens * tokens * width)
  mlp = 2 * (2 * tokens * width * hidden)
  assert found == {'float32': batch * (embed + depth * (projections + attention + mlp))}


def test_a_lora_gradient_costs_what_the_textbook_says():
  m, d, k, r = 6, 10, 14, 2

  def loss(delta, w, x):
    (a1, b1), (a2, b2) = delta
    y = x @ w[0] + (x @ a1) @ b1
    return jnp.square(y @ w[1] + (y @ a2) @ b2).sum()

  delta = ((shape(d, r), shape(r, d)), (shape(d, r), shape(r, k)))
  found = matmul(jax.grad(loss), delta, (shape(d, d), shape(d, k)), shape(m, d))
  forward = 2 * m * (d * d + d * r + r * d) + 2 * m * (d * k + d * r + r * k)
  # Both layers: y' B^T, then A's and B's gradients. The upper one also hands on to y.
  lower = 2 * m * (d * r + d * r + r * d)
  upper = 2 * m * (k * r + d * r + r * k) + 2 * m * (k * d + r * d)
  assert found == {'float32': forward + lower + upper}


def test_a_scan_over_layers_costs_what_the_layers_do():
  sizes = {'image_size': 12, 'channels': 1, 'patch': 3, 'width': 32, 'depth': 4, 'heads': 2}
  count = {}
  for scan in (False, True):
    model = vit(**sizes, mean=(0.5,), std=(0.5,), scan=scan)
    frozen = jax.eval_shape(model.init, jax.random.key(0))
    loss = lambda x, p, model=model: model.apply(p, x).pooled.sum()
    count[scan] = sum(matmul(jax.grad(loss), shape(5, 12, 12, 1), frozen).values())
  assert count[True] == count[False]


def test_predictions_are_not_charged_for_training():
  train, predict, args = step_of('small', 'linear_probe')
  step, once = (flops(program_of(each, *args)).total for each in (train, predict))
  # The head's gradient and update are all that there is besides.
  assert once < step < 1.02 * once


@pytest.mark.slow
@pytest.mark.parametrize('peft', PEFTS)
def test_a_training_step_is_within_a_tenth_of_xlas_count(peft):
  train, _, args = step_of('small', peft)
  there = compiled('small', peft, 'train').cost_analysis()['flops']
  # What is left out are the polynomials that XLA makes of erfc, 6 % of so small a model.
  assert flops(program_of(train, *args)).total == pytest.approx(there, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize('peft', ['lora', 'vpt_deep', 'vera'])
def test_a_prediction_is_within_a_tenth_of_xlas_count(peft):
  _, predict, args = step_of('small', peft)
  there = compiled('small', peft, 'predict').cost_analysis()['flops']
  assert flops(program_of(predict, *args)).total == pytest.approx(there, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize('peft', ['full', 'ssf', 'vera'])
def test_a_step_of_vit_tiny_is_within_a_tenth_of_what_is_lowered(peft):
  train, _, args = step_of('vit_tiny_patch16_224', peft)
  there = jax.jit(train).lower(*args).cost_analysis()['flops']
  assert flops(program_of(train, *args)).total == pytest.approx(there, rel=0.1)


@pytest.mark.slow
def test_a_compiled_step_of_vit_tiny_is_within_a_tenth():
  train, _, args = step_of('vit_tiny_patch16_224', 'lora')
  there = compiled('vit_tiny_patch16_224', 'lora', 'train').cost_analysis()['flops']
  assert flops(program_of(train, *args)).total == pytest.approx(there, rel=0.1)


def test_vit_tiny_is_the_model_that_papers_count():
  # 1.26 G multiply-adds of one image: timm's table of ViT-Ti/16 at 224 x 224.
  backbone, frozen = backbone_of('vit_tiny_patch16_224'), frozen_of('vit_tiny_patch16_224')
  found = matmul(lambda p, x: backbone.apply(p, x).tokens, frozen, shape(1, 224, 224, 3))
  assert sum(found.values()) / 2 == pytest.approx(1.26e9, rel=0.01)
