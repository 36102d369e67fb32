"""Writes what a step of a large model needs on each of eight virtual devices.

    python memory.py OUT.json

Nothing is allocated. The process must see eight devices.
"""

import json
import pathlib
import sys

import jax
from collecting import collect_rarely

sys.path.append(str(pathlib.Path(__file__).parents[2] / 'experiments'))

from bench_mesh import measure

VIT = ('1 device', 'data 8', 'data 4, model 2', 'data 1, model 8', 'data 8, fsdp')
LLAMA = ('1 device', 'data 1, model 8', 'data 4, model 2, fsdp')


def main(out: str) -> None:
  """Compiles all."""
  assert jax.device_count() == 8, jax.devices()
  collect_rarely()
  vit = {name: measure('vit_large_patch16_224', name, 64)._asdict() for name in VIT}
  llama = {name: measure('llama_3.2_1b', name, 16, length=512)._asdict() for name in LLAMA}
  pathlib.Path(out).write_text(json.dumps({'vit': vit, 'llama': llama}))


if __name__ == '__main__':
  main(sys.argv[1])
