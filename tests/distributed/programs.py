"""Compiles the steps of a transformer for eight virtual devices; writes what these exchange.

    python programs.py OUT.json

Nothing is allocated, and nothing is run. The process must see eight devices.
"""

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from collecting import collect_rarely

from distributed.hlo import calls_home, exchanges
from pecft_jax.backbones.families.decoder.model import decoder
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.continual import derpp, ease, ewc, finetune, l2p, olora, ranpac
from pecft_jax.paths import named_leaves
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.train import (
  Layout,
  compile_steps,
  fsdp,
  make_mesh,
  sgd,
  split_memory,
  tensor_parallel,
)
from pecft_jax.train.abstract import arguments
from pecft_jax.typing import Backbone, Capacity, ContinualMethod

# Rows of activations are as many as of no matrix.
BATCH, DEPTH, WIDTH, HIDDEN, RANK, VOCABULARY = 40, 3, 32, 96, 2, 80
CAPACITY = Capacity(5, 7)
# Of the functions of a method, the one that the frozen weights matter most to.
CASES: dict[str, tuple[Callable[[Backbone, Any], ContinualMethod], str]] = {
  'finetune': (lambda b, peft: finetune(b, CAPACITY, peft=peft), 'train'),
  'l2p': (lambda b, peft: l2p(b, CAPACITY, pool=9, length=2, top_k=2), 'train'),
  'olora': (lambda b, peft: olora(b, CAPACITY, peft=peft), 'train'),
  'derpp': (lambda b, peft: derpp(finetune(b, CAPACITY, peft=peft), size=24), 'train'),
  'ewc': (lambda b, peft: ewc(finetune(b, CAPACITY, peft=peft)), 'consolidate'),
  'ease': (lambda b, peft: ease(b, CAPACITY, peft=peft), 'predict'),
  'ranpac': (lambda b, peft: ranpac(b, CAPACITY, peft=peft, projection=40), 'consolidate'),
}


def backbone(*, scan: bool, fused: bool = True) -> Backbone:
  """All its axes differ, so that shapes tell what is what."""
  return vit(
    image_size=12, channels=3, patch=4, width=WIDTH, depth=DEPTH, heads=4, mlp_ratio=HIDDEN / WIDTH,
    mean=(0.5,) * 3, std=(0.5,) * 3, scan=scan, fused=fused,
  )  # fmt: skip


def layouts() -> dict[str, Layout]:
  """Ways to use eight devices."""
  carried = split_memory('data', 'model')
  return {
    '4 x 2': Layout(make_mesh({'data': 4, 'model': 2}), (*tensor_parallel(), *carried)),
    '2 x 4': Layout(make_mesh({'data': 2, 'model': 4}), (*tensor_parallel(), *carried)),
    'fsdp': Layout(make_mesh({'data': 8}), (*fsdp(), *split_memory())),
  }


def program(case: str, layout: Layout, on: Backbone) -> dict[str, Any]:
  """What the devices exchange in one function of a method, and the shapes to tell it by."""
  make, function = CASES[case]
  method = make(on, lora(r'attn/(q|v|out)$|mlp', rank=RANK))
  frozen = jax.eval_shape(on.init, jax.random.key(0))
  steps = compile_steps(method, sgd(0.1), layout, frozen)
  given = arguments(steps, method, frozen, BATCH)
  inputs = given.gather if function == 'consolidate' else getattr(given, function)
  text = getattr(steps, function).lower(*inputs).compile().as_text()
  local = lambda leaf: list(leaf.sharding.shard_shape(leaf.shape))
  return {
    'exchanges': [exchange._asdict() for exchange in exchanges(text)],
    'calls_home': calls_home(text),
    'frozen': {name: [list(leaf.shape), local(leaf)] for name, leaf in named_leaves(inputs[1])},
    'params': {name: [list(a.shape), local(a)] for name, a in named_leaves(inputs[0].params)},
  }


def main(out: str) -> None:
  """Compiles all."""
  assert jax.device_count() == 8, jax.devices()
  collect_rarely()
  stack, loop = backbone(scan=True), backbone(scan=False, fused=False)
  found: dict[str, Any] = {}
  for name, layout in layouts().items():
    for case in CASES if name != '2 x 4' else ('finetune',):
      found[f'{case}, {name}'] = program(case, layout, stack)
  text = decoder(
    vocabulary=VOCABULARY, width=WIDTH, depth=DEPTH, heads=4, kv_heads=2, hidden=HIDDEN, length=10,
    scan=True,
  )  # fmt: skip
  for name in ('4 x 2', 'fsdp'):
    found[f'decoder, {name}'] = program('finetune', layouts()[name], text)
  found['loop, 4 x 2'] = program('finetune', layouts()['4 x 2'], loop)
  pathlib.Path(out).write_text(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1])
