"""What a training step costs: images/s, FLOPs, memory and compile time, per method and PEFT.

    python experiments/bench_step.py [--backbone NAME] [--batch-size N] [--only NAME ...]

Weights are random: cost does not depend on them. Figures of one run may be
compared with one another; the first line has this machine's matmul rate.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from pecft_jax.backbones import random_weights
from pecft_jax.catalog import METHODS, PEFTS, method_by_name
from pecft_jax.train import adam
from pecft_jax.train.heap import keep_heap
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step
from pecft_jax.typing import Batch, Capacity, Task


def matmul_rate(size: int = 2048, repeats: int = 5) -> float:
  """FLOP/s of one float32 matrix product [size, size] on this machine, at its best."""
  x = jnp.ones((size, size))
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  return 2 * size**3 / min(_seconds(lambda: product(x, x), 1) for _ in range(repeats))


def _seconds(call, count: int) -> float:
  out, start = None, time.perf_counter()
  for _ in range(count):
    out = call()
  jax.block_until_ready(out)
  return (time.perf_counter() - start) / count


def cases() -> dict[str, tuple[str, str | None]]:
  """(method, peft) by the name in the table: every PEFT under fine-tuning, and every method."""
  trained = [name for name in METHODS if name not in ('finetune', 'joint', 'simplecil')]
  return {
    **{f'finetune + {peft}': ('finetune', peft) for peft in PEFTS},
    **{method: (method, None) for method in trained},
  }


def measure(method_name, peft, model, batch_size, repeats, rate):
  """One row: compile seconds, GFLOP, temporaries in MiB, ms, images/s, share of the matmul rate."""
  capacity = Capacity(10, 100)
  method = method_by_name(method_name, model.backbone, capacity, peft=peft)
  recipe = adam(1e-3)
  state = init_state(method, recipe, jax.random.key(0), model.params)
  half, zero = jnp.arange(100) < 50, jnp.int32(0)
  state = state._replace(
    task=Task(zero, half, half, jnp.zeros(100, bool), jnp.where(half, 0, -1), zero, jnp.int32(100))
  )
  shape = (batch_size, *model.backbone.inputs.shape)
  images = jax.random.randint(jax.random.key(1), shape, 0, 256).astype(jnp.uint8)
  rows = jnp.arange(batch_size, dtype=jnp.int32)
  batch = Batch(images, rows % 50, jnp.ones(batch_size, bool), rows)
  step = jax.jit(lambda s, f, b: train_step(method, recipe, s, f, b))
  start = time.perf_counter()
  compiled = step.lower(state, model.params, batch).compile()
  compile_seconds = time.perf_counter() - start
  costs: Any = compiled.cost_analysis()
  memory: Any = compiled.memory_analysis()
  flops, temporary = costs['flops'], memory.temp_size_in_bytes
  compiled(state, model.params, batch)
  seconds = min(_seconds(lambda: compiled(state, model.params, batch), 1) for _ in range(repeats))
  return (
    f'{compile_seconds:.1f}',
    f'{flops / 1e9:.2f}',
    f'{temporary / 2**20:.0f}',
    f'{seconds * 1e3:.1f}',
    f'{batch_size / seconds:.0f}',
    f'{flops / seconds / rate:.0%}',
  )


def main(
  backbone: str = 'vit_32_p8_tiny_imagenet',
  batch_size: int = 32,
  repeats: int = 5,
  only: tuple[str, ...] = (),
) -> None:
  """Prints the table.

  Args:
    backbone: name of a backbone card.
    batch_size: images per step.
    repeats: timed steps; the best counts.
    only: rows whose name contains one of these.
  """
  keep_heap()
  console = Console()
  rate = matmul_rate()
  console.print(f'{jax.devices()[0].device_kind}, float32 matmul {rate / 1e9:.0f} GFLOP/s')
  table = Table(title=f'{backbone}, batch {batch_size}', box=None)
  table.add_column('step')
  for title in ('compile s', 'GFLOP', 'temp MiB', 'ms', 'images/s', 'of matmul'):
    table.add_column(title, justify='right')
  model = random_weights(backbone)
  for name, (method, peft) in cases().items():
    if not only or any(part in name for part in only):
      table.add_row(name, *measure(method, peft, model, batch_size, repeats, rate))
  console.print(table)


if __name__ == '__main__':
  tyro.cli(main)
