"""A LoRA step of ViT-Ti/16 written by hand in JAX: what the library's own step is compared with.

It does what is known to pay, as a careful user would: frozen weights are an argument that is not
differentiated, the update is not merged into the weights, the last block computes the class token
alone, and the state is donated.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from bench_ours import costs, matmul, wait
from contest import BY_HAND, CLASSES, Contest, Rig

__all__ = ('build', 'wait')

SIZES, BATCH = BY_HAND
WIDTH, DEPTH, HEADS, HIDDEN = SIZES[:4]
PATCH, SIDE = 16, 224
RANK, SCALE = 8, 2.0
TOKENS = (SIDE // PATCH) ** 2 + 1


def frozen_weights(key: Any) -> dict[str, Any]:
  """A ViT-Ti/16 with random weights."""
  keys = iter(jax.random.split(key, 99))
  normal = lambda *shape: 0.02 * jax.random.normal(next(keys), shape)
  norm = lambda: (jnp.ones(WIDTH), jnp.zeros(WIDTH))
  dense = lambda rows, columns: (normal(rows, columns), jnp.zeros(columns))
  block = lambda: {
    'norm1': norm(),
    'qkv': dense(WIDTH, 3 * WIDTH),
    'out': dense(WIDTH, WIDTH),
    'norm2': norm(),
    'fc1': dense(WIDTH, HIDDEN),
    'fc2': dense(HIDDEN, WIDTH),
  }
  return {
    'patch': dense(3 * PATCH**2, WIDTH),
    'cls': normal(WIDTH),
    'pos': normal(TOKENS, WIDTH),
    'blocks': [block() for _ in range(DEPTH)],
    'norm': norm(),
  }


def norm(x: Any, weights: Any) -> Any:
  """Layer normalisation."""
  mean = x.mean(-1, keepdims=True)
  variance = jnp.square(x - mean).mean(-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * weights[0] + weights[1]


def dense(x: Any, weights: Any) -> Any:
  """x W + b"""
  return x @ weights[0] + weights[1]


def run_block(x: Any, block: Any, low: Any, rows: int | None) -> Any:
  """A block with LoRA on its queries and values."""
  y = norm(x, block['norm1'])
  kernels, biases = jnp.split(block['qkv'][0], 3, 1), jnp.split(block['qkv'][1], 3)
  q, k, v = (
    dense(part, weights)
    for part, *weights in zip((y[:, :rows], y, y), kernels, biases, strict=True)
  )
  q = q + SCALE * (y[:, :rows] @ low['qa'] @ low['qb'])
  v = v + SCALE * (y @ low['va'] @ low['vb'])
  q, k, v = (a.reshape(*a.shape[:2], HEADS, -1) for a in (q, k, v))
  y = jax.nn.dot_product_attention(q, k, v)
  x = x[:, :rows] + dense(y.reshape(*y.shape[:2], WIDTH), block['out'])
  y = jax.nn.gelu(dense(norm(x, block['norm2']), block['fc1']), approximate=False)
  return x + dense(y, block['fc2'])


def logits_of(trained: Any, frozen: Any, images: Any) -> Any:
  """uint8 images [B, 224, 224, 3] to logits."""
  n = SIDE // PATCH
  x = (images.astype(jnp.float32) - 127.5) / 127.5
  x = x.reshape(BATCH, n, PATCH, n, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
  x = dense(x.reshape(BATCH, n * n, -1), frozen['patch'])
  cls = jnp.broadcast_to(frozen['cls'], (BATCH, 1, WIDTH))
  x = jnp.concatenate([cls, x], 1) + frozen['pos']
  for i, (block, low) in enumerate(zip(frozen['blocks'], trained['lora'], strict=True)):
    x = run_block(x, block, low, 1 if i == DEPTH - 1 else None)
  return dense(norm(x[:, 0], frozen['norm']), trained['head'])


def lora() -> Contest:
  """The step, compiled ahead of time."""
  keys = iter(jax.random.split(jax.random.key(0), 2 * DEPTH + 3))
  frozen = frozen_weights(next(keys))
  draw = lambda: jax.random.uniform(next(keys), (WIDTH, RANK), minval=-0.07, maxval=0.07)
  zeros = lambda: jnp.zeros((RANK, WIDTH))
  trained = {
    'lora': [{'qa': draw(), 'qb': zeros(), 'va': draw(), 'vb': zeros()} for _ in range(DEPTH)],
    'head': (jnp.zeros((WIDTH, CLASSES)), jnp.zeros(CLASSES)),
  }
  optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, 100))
  images = jax.random.randint(next(keys), (BATCH, SIDE, SIDE, 3), 0, 256).astype(jnp.uint8)
  labels, seen = jnp.arange(BATCH) % 10, jnp.arange(CLASSES) < 10

  def update(carry, frozen, images, labels):
    def loss_of(trained):
      logits = jnp.where(seen, logits_of(trained, frozen, images), -1e9)
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
      return loss, (logits.argmax(-1) == labels).sum()

    trained, state = carry
    (loss, correct), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(trained, updates), state), (loss, correct)

  carry = trained, optimizer.init(trained)
  lowered = jax.jit(update, donate_argnums=0).lower(carry, frozen, images, labels)
  compiled = lowered.compile()

  def step() -> Any:
    nonlocal carry
    carry, log = compiled(carry, frozen, images, labels)
    return carry, log

  return Contest(step, costs(compiled))


def build(name: str, rig: Rig) -> Contest:
  """The contestant of a contest: of `by_hand`, or the roofline."""
  return matmul(rig) if name == 'matmul' else lora()
