"""Lays states out over eight virtual devices; writes what each device holds and sends.

    python eight_devices.py OUT.json

The process must see eight devices.
"""

import json
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
from collecting import collect_rarely

from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.catalog import method_by_name
from pecft_jax.devices.sharding import Rule
from pecft_jax.plan import abstract_layout, plan
from pecft_jax.train import Layout, adam, compile_steps, fsdp, make_mesh, tensor_parallel
from pecft_jax.train.state import init_state
from pecft_jax.typing import Batch, Capacity

BATCH = 16
LAYOUTS = {
  'data': ({'data': 8}, ()),
  'data, model': ({'data': 4, 'model': 2}, tensor_parallel()),
  'fsdp': ({'data': 8}, fsdp()),
  'fsdp, model, head': (
    {'data': 2, 'model': 4},
    (Rule(r'^params/head/kernel$', ('model', None)), *tensor_parallel(), *fsdp()),
  ),
}
METHODS = {
  'finetune, lora': ('finetune', 'lora', ()),
  'finetune, full': ('finetune', 'full', ()),
  'ease': ('ease', None, ()),
  'ranpac': ('ranpac', None, ()),
  'ewc(derpp(finetune))': ('finetune', 'lora', ('derpp', 'ewc')),
}
OPTIONS = {'ranpac': {'projection': 96}, 'derpp': {'size': 24}}
# Methods without parameters of other kinds than the first: in every second layout, by turns.
BY_TURNS = ('ease', 'ranpac')
RECIPE = adam(1e-3)
# Of these the step is compiled, to see what is sent.
SENT = (('finetune, lora', 'data'), ('finetune, full', 'data'))
WIDTHS = {'f32': 4, 's32': 4, 'u32': 4, 'pred': 1, 'u8': 1}


def layouts_of(title: str) -> tuple[str, ...]:
  """The layouts that a method is laid out in."""
  if title not in BY_TURNS:
    return tuple(LAYOUTS)
  return tuple(LAYOUTS)[BY_TURNS.index(title) % 2 :: 2]


def bytes_held(tree) -> int:
  """Of the shards on the first device."""
  first = jax.devices()[0]
  shards = (s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards)
  return sum(shard.data.nbytes for shard in shards if shard.device == first)


def bytes_sent(text: str, devices: int) -> float:
  """By each device in the sums of a compiled program, as rings."""
  total = 0.0
  for shapes in re.findall(r'= (.*?) all-reduce(?:-start)?\(', text):
    for kind, dims in re.findall(r'(\w+)\[([\d,]*)\]', shapes):
      total += WIDTHS[kind] * math.prod(int(size) for size in dims.split(',') if size)
  return 2 * total * (devices - 1) / devices


def main(out: str) -> None:
  """Runs all cases."""
  assert jax.device_count() == 8, jax.devices()
  collect_rarely()
  backbone = vit(
    image_size=16, channels=1, patch=4, width=64, depth=2, heads=4, mlp_ratio=2, mean=(0.5,),
    std=(0.5,),
  )  # fmt: skip
  frozen = jax.jit(backbone.init)(jax.random.key(0))
  images = jnp.zeros((BATCH, 16, 16, 1), jnp.uint8)
  rows = jnp.arange(BATCH, dtype=jnp.int32)
  batch = Batch(images, rows % 4, jnp.ones(BATCH, bool), rows)
  found = {}
  for title, (name, peft, wrap) in METHODS.items():
    method = method_by_name(name, backbone, Capacity(3, 12), peft=peft, wrap=wrap, options=OPTIONS)
    init = jax.jit(lambda key, frozen, method=method: init_state(method, RECIPE, key, frozen))
    whole = init(jax.random.key(0), frozen)
    for place in layouts_of(title):
      axes, rules = LAYOUTS[place]
      steps = compile_steps(method, RECIPE, Layout(make_mesh(axes), rules), frozen)
      state = jax.device_put(whole, steps.state_shardings)
      there = jax.device_put(frozen, steps.frozen_shardings)
      layout = abstract_layout(axes, rules)
      planned = plan(method, backbone, frozen, RECIPE, batch_size=BATCH, layout=layout)
      held = {
        'frozen': bytes_held(there),
        'trained': bytes_held(state.params),
        'optimizer': bytes_held(state.opt_state),
        'continual': bytes_held(state.memory),
        'record': bytes_held((state.task, state.step, state.key)),
        'batch': bytes_held(jax.device_put(batch, steps.batch_sharding)),
      }
      case = {'held': held, 'planned': {name: getattr(planned.memory, name) for name in held}}
      if (title, place) in SENT:
        text = steps.train.lower(state, there, batch).compile().as_text()
        case |= {'sent': bytes_sent(text, 8), 'planned_sent': sum(planned.sent)}
      found[f'{title}; {place}'] = case
  pathlib.Path(out).write_text(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1])
