"""A batch whose examples have adapters of their own, beside the same batch with one adapter.

    python experiments/bench_per_example.py
    python experiments/bench_per_example.py --name vit_small_patch16_224 --batch 32 --rank 8

Both are forward passes of the same model with LoRA, compiled once and run by turns, so that what
else the machine does meets both. Counted are CPU seconds of the process, all threads together; on
an accelerator, pass `--wall` for seconds of the clock. The figure is the ratio of the medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pecft_jax.backbones import architecture
from pecft_jax.peft import bank, lora, per_example, take


def seconds(run: Callable[[], jax.Array], clock: Callable[[], float]) -> float:
  """Of one call."""
  start = clock()
  jax.block_until_ready(run())
  return clock() - start


def main() -> None:
  """Prints the seconds of both, and their ratio."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--name', default='vit_tiny_patch16_224', help='of an architecture')
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--rank', type=int, default=8)
  parser.add_argument('--slots', type=int, default=32, help='adapters in the bank')
  parser.add_argument('--pattern', default=r'attn/(q|v)$', help='of the layers that are adapted')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--wall', action='store_true', help='seconds of the clock')
  args = parser.parse_args()
  backbone, peft = architecture(args.name), lora(args.pattern, args.rank)
  params = jax.jit(backbone.init)(jax.random.key(0))
  deltas = bank(peft, args.slots).init(jax.random.key(1), backbone.sites, params)
  deltas = jax.tree.map(lambda leaf: leaf + 0.01, deltas)  # B is zero at init.
  x = jax.random.uniform(jax.random.key(2), (args.batch, *backbone.inputs.shape))
  first, slots = take(deltas, 0), jnp.arange(args.batch) % args.slots
  single = jax.jit(lambda params, x, delta: backbone.apply(params, x, delta, peft=peft).pooled)
  mixed = jax.jit(per_example(lambda *a, **k: backbone.apply(*a, **k).pooled, peft))
  runs = {
    'one adapter': lambda: single(params, x, first),
    'one for each example': lambda: mixed(params, x, deltas, slots),
  }
  clock = time.perf_counter if args.wall else time.process_time
  taken: dict[str, list[float]] = {name: [] for name in runs}
  for turn in range(args.repeats + 1):
    for name, run in runs.items():
      took = seconds(run, clock)
      if turn:  # The first compiles.
        taken[name].append(took)
  one, each = (statistics.median(times) for times in taken.values())
  for name, times in taken.items():
    print(f'{name}: {statistics.median(times):.3f} s ({min(times):.3f} to {max(times):.3f})')
  print(f'{args.name}, rank {args.rank}, batch {args.batch}: {each / one:.3f} times as long')


if __name__ == '__main__':
  main()
