"""What is watched on eight virtual devices beside what one sees; writes how far they are apart.

    python eight_watched.py OUT.json

The process must see eight devices.
"""

import json
import pathlib
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
from collecting import collect_rarely

from pecft_jax.backbones import vit
from pecft_jax.devices.sharding import batched, place, replicated, traced_on, tree_shardings
from pecft_jax.train import Layout, fsdp, make_mesh, tensor_parallel


def main(out: str) -> None:
  """Second moments of what arrives at attention, and their gradients, per mesh."""
  assert jax.device_count() == 8, jax.devices()
  collect_rarely()
  model = vit(
    image_size=8, channels=1, patch=4, width=16, depth=2, heads=2, mean=(0.5,), std=(0.5,),
    scan=True,
  )  # fmt: skip
  frozen = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
  images = np.asarray(jax.random.normal(jax.random.key(1), (8, 8, 8, 1)))

  def watch(site, args, _):
    if site.kind != 'linear' or not site.path.endswith(('attn/k', 'mlp/fc2')):
      return None
    x = args[0].reshape(-1, args[0].shape[-1])
    return jnp.matmul(x.T, x, precision='highest')

  taps = lambda frozen, images: model.apply(frozen, images, watch=watch).taps
  size = lambda frozen, images: sum(jnp.trace(gram) for gram in taps(frozen, images).values())
  both = lambda *args: (taps(*args), jax.grad(size, 1)(*args))
  want = jax.jit(both)(frozen, images)
  layouts = {
    'data 8': Layout(make_mesh({'data': 8})),
    'data 4, model 2': Layout(make_mesh({'data': 4, 'model': 2}), tensor_parallel()),
    'fsdp': Layout(make_mesh({'data': 8}), fsdp()),
  }
  found = {}
  for name, layout in layouts.items():
    weights = place(frozen, tree_shardings(layout, frozen))
    rows = place(images, batched(layout))
    got = jax.jit(traced_on(layout, both))(weights, rows)
    chex.assert_trees_all_equal_structs(got, want)
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(layout))(got)
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(want), strict=True)
    found[name] = max(
      float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())
      for a, b in pairs
    )
  pathlib.Path(out).write_text(json.dumps({'apart': found, 'sites': sorted(want[0])}))


if __name__ == '__main__':
  main(sys.argv[1])
