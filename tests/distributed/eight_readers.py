"""A decoder on eight virtual devices and on one; prints how far features and gradients are apart,
and what a judge on the host gives runs of it.

    python eight_readers.py

The process must see eight devices. Sizes are such that no axis of the mesh is
left over: two heads of keys, and 12 words, on two devices each.
"""

import json
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from collecting import collect_rarely
from markov import markov_domains
from tiny_runs import silent

from pecft_jax.backbones import decoder
from pecft_jax.continual import language_model
from pecft_jax.devices.sharding import batched, tree_shardings
from pecft_jax.measures import Measure
from pecft_jax.paths import named_leaves
from pecft_jax.peft import lora
from pecft_jax.problems import judged_on_host, next_tokens
from pecft_jax.train import (
  Experiment,
  Layout,
  Training,
  adam,
  fsdp,
  make_mesh,
  one_device,
  run,
  tensor_parallel,
)
from pecft_jax.typing import Capacity, Pretrained


def overlap(answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """The share of words that two texts have in common."""
  counts = lambda ids: np.stack([(ids == word).sum(1) for word in range(8)], 1)
  return np.minimum(counts(answers), counts(targets)).sum(1) / targets.shape[1]


def judged(layout: Layout) -> Any:
  """The matrix of a run whose answers are judged on the host; a row of its batches is no text."""
  problem = judged_on_host(next_tokens(6), overlap, Measure('overlap', 0.0, 1.0))
  reader = decoder(vocabulary=8, width=8, depth=1, heads=2, kv_heads=2, hidden=8, length=6)
  model = Pretrained(reader, jax.jit(reader.init)(jax.random.key(0)))
  method = language_model(reader, Capacity(2, 1, problem), peft=lora('attn|mlp', rank=2))
  scenario = markov_domains(2, vocabulary=8, length=6, train=8, test=7)
  training = Training(adam(0.1), epochs=2, batch_size=8, eval_batch_size=8)
  with tempfile.TemporaryDirectory() as workdir:
    found = run(Experiment(model, scenario, method, training), workdir, silent(layout=layout))
  return found['overlap_matrix']


def main() -> None:
  """Compares two layouts with one device."""
  assert jax.device_count() == 8, jax.devices()
  collect_rarely()
  model = decoder(
    vocabulary=12, width=16, depth=2, heads=4, kv_heads=2, hidden=24, length=9, scan=True
  )
  peft = lora(r'attn|mlp', rank=3)
  params = jax.jit(model.init)(jax.random.key(0))
  delta = peft.init(jax.random.key(1), model.sites, params)
  delta = jax.tree.map(lambda leaf: leaf + 0.1, delta)
  ids = np.random.default_rng(0).integers(0, 12, (8, 9)).astype(np.int32)
  ids[3, 5:] = ids[6, :2] = -1

  def loss(delta, params, ids):
    pooled = model.apply(params, ids, delta, peft=peft, rows=1).pooled
    return jnp.square(pooled - 1).mean(), pooled

  step = jax.value_and_grad(loss, has_aux=True)
  whole = jax.jit(step)(delta, params, ids)
  layouts = {
    'data 4, model 2': Layout(make_mesh({'data': 4, 'model': 2}), tensor_parallel()),
    'fsdp': Layout(make_mesh({'data': 8}), fsdp()),
  }
  found = {}
  for name, layout in layouts.items():
    trees = (delta, params)
    shardings = tuple(tree_shardings(layout, tree) for tree in trees)
    parts = jax.device_put((*trees, ids), (*shardings, batched(layout)))
    got = jax.jit(step, out_shardings=None)(*parts)
    far = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), got, whole)
    found[name] = {
      'distance': max(jax.tree.leaves(far)),
      'size': float(np.abs(whole[0][1]).max()),
      'specs': {n: str(tuple(s.spec)) for n, s in named_leaves(shardings[1]) if any(s.spec)},
    }
  found['judged'] = [judged(each) for each in (one_device(), layouts['data 4, model 2'])]
  print(json.dumps(found))


if __name__ == '__main__':
  main()
