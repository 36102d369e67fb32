"""What one training step needs on each of eight devices, as a Markdown table.

    python experiments/bench_mesh.py [--card vit_large_patch16_224] [--batch 64]

Steps are compiled for virtual devices from shapes alone: nothing is allocated
and nothing is run, so a laptop can tell what a model too large for it needs.
Arguments are weights, state and batch; temporaries what the step holds beside
them at its peak, as XLA's compiler for the CPU plans it.
"""

import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

FLAGS = (
  '--xla_force_host_platform_device_count=8',
  # Speed does not matter here; memory does, for which the CPU's default schedule has no eye.
  '--xla_backend_optimization_level=0',
  '--xla_cpu_enable_concurrency_optimized_scheduler=false',
)
MIB = 2**20


class Row(NamedTuple):
  """One layout, in bytes per device."""

  layout: str
  frozen: int
  trained: int  # Parameters, moments, memory: all of the state.
  arguments: int
  temporaries: int
  seconds: float  # To compile.


def layouts() -> dict[str, Any]:
  """Ways to use eight devices, and one."""
  from pecft_jax.train import Layout, fsdp, make_mesh, one_device, split_memory, tensor_parallel

  carried = split_memory('data', 'model')
  both = (*tensor_parallel(), *carried)
  fully = (*tensor_parallel('model', 'data'), *fsdp(), *carried)
  mesh = lambda **axes: make_mesh(axes)
  return {
    '1 device': one_device(),
    'data 8': Layout(mesh(data=8), split_memory()),
    'data 4, model 2': Layout(mesh(data=4, model=2), both),
    'data 1, model 8': Layout(mesh(data=1, model=8), both),
    'data 8, fsdp': Layout(mesh(data=8), (*fsdp(), *split_memory())),
    'data 4, model 2, fsdp': Layout(mesh(data=4, model=2), fully),
    'data 2, model 4, fsdp': Layout(mesh(data=2, model=4), fully),
  }


def measure(card: str, name: str, batch: int, **options: Any) -> Row:
  """Compiles one step of LoRA fine-tuning.

  Args:
    card: of the backbone.
    name: of a layout.
    batch: examples over all devices.
    **options: of the backbone's family: `length`, `dtype`, `remat`, `depth`, ...
  """
  import jax

  from pecft_jax.backbones import architecture
  from pecft_jax.continual import finetune
  from pecft_jax.peft.lowrank.lora import lora
  from pecft_jax.train import adam, compile_steps
  from pecft_jax.train.abstract import arguments
  from pecft_jax.typing import Capacity

  def held(tree: Any) -> int:
    local = lambda leaf: leaf.sharding.shard_shape(leaf.shape)
    return sum(_size(local(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

  backbone = architecture(card, **{'scan': True, **options})
  method = finetune(backbone, Capacity(10, 100), peft=lora(r'attn/(q|v)$', rank=8))
  frozen = jax.eval_shape(backbone.init, jax.eval_shape(lambda: jax.random.key(0)))
  steps: Any = compile_steps(method, adam(1e-3), layouts()[name], frozen)
  given = arguments(steps, method, frozen, batch).train
  started = time.perf_counter()
  memory = steps.train.lower(*given).compile().memory_analysis()
  seconds = time.perf_counter() - started
  state, frozen, _ = given
  needed = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  return Row(name, held(frozen), held(state), *needed, seconds)


def _size(shape: Sequence[int]) -> int:
  out = 1
  for n in shape:
    out *= n
  return out


def table(rows: Sequence[Row]) -> str:
  """Rows as Markdown, in MiB per device."""
  lines = [
    '| devices | frozen | state | arguments | temporaries | compiled in |',
    '|---|---:|---:|---:|---:|---:|',
  ]
  for row in rows:
    sizes = (row.frozen, row.trained, row.arguments, row.temporaries)
    cells = ' | '.join(f'{size / MIB:,.1f}' for size in sizes)
    lines.append(f'| {row.layout} | {cells} | {row.seconds:.1f} s |')
  return '\n'.join(lines)


def main(card: str = 'vit_large_patch16_224', batch: int = 64, length: int | None = None) -> None:
  """Prints the table.

  Args:
    card: of the backbone.
    batch: examples over all devices.
    length: tokens of a text, for decoders.
  """
  os.environ['XLA_FLAGS'] = ' '.join((os.environ.get('XLA_FLAGS', ''), *FLAGS))
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  options = {} if length is None else {'length': length}
  print(f'{card}, batch {batch}{"" if length is None else f" of {length} tokens"}: MiB per device')
  print()
  print(table([measure(card, name, batch, **options) for name in layouts()]))


if __name__ == '__main__':
  import tyro

  tyro.cli(main)
