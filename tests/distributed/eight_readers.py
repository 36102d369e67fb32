"""A decoder on eight virtual devices and on one; prints how far features and gradients are apart.

    python eight_readers.py

The process must see eight devices. Sizes are such that no axis of the mesh is
left over: two heads of keys, and 12 words, on two devices each.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones import decoder
from pecft_jax.devices.sharding import batched, tree_shardings
from pecft_jax.paths import named_leaves
from pecft_jax.peft import lora
from pecft_jax.train import Layout, fsdp, make_mesh, tensor_parallel


def main() -> None:
  """Compares two layouts with one device."""
  assert jax.device_count() == 8, jax.devices()
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
  print(json.dumps(found))


if __name__ == '__main__':
  main()
