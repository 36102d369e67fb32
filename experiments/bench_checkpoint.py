"""What a checkpoint costs: bytes on disk against the state, and time against training.

    python experiments/bench_checkpoint.py [--only NAME ...] [--seconds S]

On the digits experiment. Sizes are of a state of random numbers, since zstd
makes next to nothing of the empty slots of a new one. Times are of training
steps with and without saving, in turns; a run saves once a minute by default.
"""

import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table
from split_digits import experiment

from pecft_jax.catalog import METHODS, WRAPPERS
from pecft_jax.data import train_batches
from pecft_jax.files import plain
from pecft_jax.paths import tree_bytes
from pecft_jax.train import compile_steps, one_device
from pecft_jax.train.batches import on_devices
from pecft_jax.train.experiment import describe
from pecft_jax.train.heap import keep_heap
from pecft_jax.train.schedule import task_arrays
from pecft_jax.workdir.checkpoint import Checkpoints
from pecft_jax.workdir.inspection import bytes_of
from pecft_jax.workdir.position import Position

MINUTE = 60.0


def cases() -> dict[str, dict[str, Any]]:
  """Flags of the digits experiment by the name in the table."""
  wrapped: Any = {f'{name}(olora)': {'method': 'olora', 'wrap': name} for name in WRAPPERS}
  return {**{name: {'method': name} for name in METHODS}, **wrapped}


def filled(state: Any) -> Any:
  """A state of the same shapes without any two equal numbers in a row."""
  leaves, tree = jax.tree.flatten(state)
  keys = jax.random.split(jax.random.key(0), len(leaves))

  def one(key, leaf):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      return jax.random.normal(key, leaf.shape).astype(leaf.dtype)
    bits = jax.random.bits(key, leaf.shape, jnp.uint32)
    return (bits % 2 == 0) if leaf.dtype == bool else bits.astype(leaf.dtype)

  return jax.tree.unflatten(tree, [one(*pair) for pair in zip(keys, leaves, strict=True)])


def sizes(state: Any, identity: Any, directory: pathlib.Path) -> tuple[int, int, int, int]:
  """Bytes of carried state, of the optimizer's, on disk, and on disk without arrays."""
  checkpoints = Checkpoints(directory, identity=identity)
  checkpoints.save(1, filled(state), Position())
  checkpoints.wait()
  data = sum(bytes_of(path) for path in directory.glob('1/state/**/d'))
  disk = bytes_of(directory / '1')
  carried = tree_bytes((state.params, state.memory))
  return carried, tree_bytes(state.opt_state), disk, disk - data


def times(found: Any, steps: Any, directory: pathlib.Path, seconds: float) -> tuple[float, ...]:
  """Milliseconds of a step, of one save as the loop waits for it, and of one save in all."""
  checkpoints, training = Checkpoints(directory), found.training
  frozen = jax.device_put(found.frozen, steps.frozen_shardings)
  state = steps.init(jax.random.key(0), frozen)
  state = steps.begin(state, frozen, task_arrays(found, found.method, 0))
  split = found.scenario.tasks[0].train
  batch = next(iter(train_batches(split, batch_size=training.batch_size, epochs=1, seed=0)))
  batch = on_devices(batch, steps.batch_sharding)
  state, _ = jax.block_until_ready(steps.train(state, frozen, batch))
  checkpoints.save(1, state, Position())  # The first one warms up.
  checkpoints.wait()
  start = time.perf_counter()
  for _ in range(5):
    state, _ = jax.block_until_ready(steps.train(state, frozen, batch))
  count = max(10, int(seconds / 8 / ((time.perf_counter() - start) / 5)))
  plain, saving, blocked = [], [], []
  for turn in range(8):
    start = time.perf_counter()
    if turn % 2:
      checkpoints.save(turn + 1, state, Position())
      blocked.append(time.perf_counter() - start)
    for _ in range(count):
      state, _ = steps.train(state, frozen, batch)
    jax.block_until_ready(state)
    checkpoints.wait()
    (saving if turn % 2 else plain).append(time.perf_counter() - start)
  step = statistics.median(plain) / count
  extra = statistics.median(saving) - statistics.median(plain)
  return 1e3 * step, 1e3 * statistics.median(blocked), 1e3 * extra


def main(only: tuple[str, ...] = (), seconds: float = 16.0) -> None:
  """Prints the table.

  Args:
    only: rows whose name contains one of these.
    seconds: of training per row.
  """
  keep_heap()
  table = Table(title='split_digits, sizes in kB, times in ms', box=None)
  table.add_column('method')
  titles = 'carried', 'optimizer', 'disk', 'no arrays', 'disk/carried', 'step', 'save, blocking'
  for title in (*titles, 'save, in all', 'of a minute'):
    table.add_column(title, justify='right')
  for name, flags in cases().items():
    if only and not any(part in name for part in only):
      continue
    found = experiment(bounds=False, **flags)
    steps = compile_steps(found.method, found.training.recipe, one_device(), found.frozen)
    state = steps.init(jax.random.key(0), found.frozen)
    with tempfile.TemporaryDirectory() as directory:
      carried, optimizer, disk, own = sizes(
        state, plain(describe(found)), pathlib.Path(directory, 'sizes')
      )
      row = (carried / 1e3, optimizer / 1e3, disk / 1e3, own / 1e3)
      step, blocking, whole = times(found, steps, pathlib.Path(directory, 'times'), seconds)
    cells = [f'{value:.1f}' for value in (*row, disk / carried, step, blocking, whole)]
    table.add_row(name, *cells, f'{max(blocking, whole) / 1e3 / MINUTE:.2%}')
  Console(width=140).print(table)


if __name__ == '__main__':
  tyro.cli(main)
