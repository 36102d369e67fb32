"""What training costs, read off the compiled programs; nothing is run."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.continual import finetune, inflora, l2p, si
from pecft_jax.peft import at_layers, full, linear_probe, lora
from pecft_jax.recipes import adam
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step
from pecft_jax.typing import Batch, Capacity, Given

DEPTH, BATCH = 6, 8
MODEL = vit(
  image_size=32, patch=8, width=192, depth=DEPTH, heads=3, mean=(0.5,) * 3, std=(0.5,) * 3
)
CAPACITY = Capacity(tasks=5, classes=10)
SHAPE = jax.ShapeDtypeStruct
FROZEN = jax.eval_shape(MODEL.init, jax.random.key(0))
IMAGES = SHAPE((BATCH, 32, 32, 3), jnp.uint8)


def update(method, x=IMAGES):
  """A train step, lowered for abstract arguments."""
  recipe = adam(1e-3)
  some = Batch(x, *(SHAPE((BATCH,), dtype) for dtype in (jnp.int32, bool, jnp.int32)))
  state = jax.eval_shape(lambda f: init_state(method, recipe, jax.random.key(0), f), FROZEN)
  step = lambda state, frozen, some: train_step(method, recipe, state, frozen, some)
  return jax.jit(step, donate_argnums=0).lower(state, FROZEN, some)


@functools.cache
def compiled(name):
  peft = {'lora': lora(), 'full': full()}[name]
  return update(finetune(MODEL, CAPACITY, peft=peft)).compile()


def forward(rows):
  """FLOPs of the backbone alone, for a batch."""
  images = SHAPE(IMAGES.shape, jnp.float32)
  run = jax.jit(lambda f, x: MODEL.apply(f, x, rows=rows).pooled)
  return run.lower(FROZEN, images).cost_analysis()['flops']


def flops(lowered):
  return lowered.cost_analysis()['flops']


def test_lora_costs_at_most_0_72_of_full_fine_tuning():
  cost = {name: compiled(name).cost_analysis()['flops'] for name in ('lora', 'full')}
  assert cost['lora'] <= 0.72 * cost['full'], cost


def test_lora_needs_less_memory_than_full_fine_tuning():
  size = lambda name: compiled(name).memory_analysis().temp_size_in_bytes
  assert size('lora') < size('full')


def test_nothing_below_the_lowest_trained_site_is_differentiated():
  block = forward(None) / DEPTH
  probe = flops(update(finetune(MODEL, CAPACITY, peft=linear_probe())))
  assert probe < 1.01 * forward(1)
  last, third, first = (
    flops(update(finetune(MODEL, CAPACITY, peft=at_layers(lora(), [layer]))))
    for layer in (DEPTH - 1, DEPTH - 3, 0)
  )
  # In the last block, gradients run through the row of the class token alone.
  assert last < probe + 0.1 * block
  # Elsewhere they cost as much as the forward pass: there are none of frozen weights.
  assert 1.7 * block < third - last < 2.1 * block
  assert 2.7 * block < first - third < 3.1 * block


def test_the_last_block_computes_the_class_token_alone():
  tokens, width = 17, 192
  # Queries, output projection and both layers of the MLP for all rows but one.
  saved = 2 * BATCH * (tokens - 1) * (2 + 8) * width**2
  assert forward(None) - forward(1) > saved
  assert forward(None) - forward(1) < 1.2 * saved


def test_a_cached_query_saves_the_forward_pass_that_makes_it():
  method = l2p(MODEL, CAPACITY, length=2)
  query = SHAPE((BATCH, 192), jnp.float32)
  saved = flops(update(method)) - flops(update(method, Given(IMAGES, query)))
  assert saved == pytest.approx(forward(1), rel=0.02)


@pytest.mark.parametrize(('name', 'most'), [('inflora', 1.15), ('si', 1.1)])
def test_what_is_designed_once_and_seen_once_costs_little(name, most):
  """InfLoRA decomposes matrices between passes, SI has the step's own gradient."""
  plain = finetune(MODEL, CAPACITY, peft=lora(r'attn/(k|v)$', rank=8))
  method = {
    'inflora': lambda: inflora(MODEL, CAPACITY, peft=lora(r'attn/(k|v)$', rank=8)),
    'si': lambda: si(plain),
  }[name]()
  assert flops(update(method)) <= most * flops(update(plain))
