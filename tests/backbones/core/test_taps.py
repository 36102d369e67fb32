"""What is watched at the sites of a backbone, and what that costs."""

import re

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones import decoder, stack_blocks, vit
from pecft_jax.backbones.core.taps import tap_of
from pecft_jax.peft import at_layers, lora
from pecft_jax.peft.weights import read
from pecft_jax.typing import Site

QV = r'attn/(q|v)$'


def moments(pattern):
  """[d_in, d_in], of what arrives at linear sites."""

  def watch(site, args, out):
    if site.kind != 'linear' or not re.search(pattern, site.path):
      return None
    x = args[0].reshape(-1, args[0].shape[-1])
    return x.T @ x

  return watch


def shaken(tree, seed):
  """Larger weights than at init, so that gradients are not tiny."""
  noise = np.random.default_rng(seed)
  return jax.tree.map(lambda a: a + 0.3 * noise.normal(size=a.shape).astype(np.float32), tree)


def trained(model, params, transform, seed=0):
  """A delta that is not the identity."""
  delta = transform.init(jax.random.key(seed), model.sites, params)
  return jax.tree.map(lambda a: a + 0.1, delta)


@pytest.fixture(params=['vit', 'decoder'])
def case(request, sizes, decoder_sizes, params, decoder_params, images, texts):
  """Factory, sizes, weights in a loop, and inputs of a model of either family."""
  if request.param == 'vit':
    return vit, sizes, params, images
  return decoder, decoder_sizes, decoder_params, jnp.asarray(texts)


def test_the_input_of_a_linear_site_is_what_a_gradient_probe_sees(tiny, params, images):
  """d/dw of <c, x w> is sum of x c^T: with c = x it is the second moment of x."""
  path = 'block_1/attn/k'
  watched = jax.jit(lambda p: tiny.apply(p, images, watch=moments(f'^{path}$')).taps)(params)
  inputs = lambda site, args, out: args[0] if site.path == path else None
  x = jax.jit(lambda p: tiny.apply(p, images, watch=inputs).taps[f'linear:{path}'])(params)

  def probe(w):
    return jnp.vdot(jnp.matmul(x, w), x)

  want = jax.grad(probe)(jnp.zeros((x.shape[-1],) * 2))
  assert list(watched) == [f'linear:{path}']
  np.testing.assert_allclose(watched[f'linear:{path}'], want, rtol=1e-5, atol=1e-5)


def test_the_output_includes_what_a_transform_changes(tiny, params, images):
  transform = lora('block_2/attn/q$', 2)
  delta = trained(tiny, params, transform)
  watch = lambda site, args, out: (args, out) if site.path == 'block_2/attn/q' else None
  taps = tiny.apply(params, images, delta, peft=transform, watch=watch).taps
  (x, w, b), out = taps['linear:block_2/attn/q']
  merged = read(transform.merge(delta, params), 'block_2/attn/q').main
  x, merged, b = (np.asarray(v, np.float64) for v in (x, merged, b))
  np.testing.assert_allclose(out, x @ merged + b, atol=1e-4)
  np.testing.assert_array_equal(w, read(params, 'block_2/attn/q').main)


def test_all_kinds_of_sites_are_watched_by_name_stack_and_layer(case):
  factory, sizes, params, inputs = case
  model = factory(**sizes)
  found = []
  watch = lambda site, args, out: found.append(site) or jnp.zeros(())
  taps = jax.eval_shape(lambda p, x: model.apply(p, x, watch=watch).taps, params, inputs)
  assert set(found) == {spec.site for spec in model.sites}
  assert set(taps) == {f'{spec.site.kind}:{spec.site.path}' for spec in model.sites}


@pytest.mark.parametrize('rows', [None, 1])
def test_a_scan_watches_what_a_loop_watches(case, rows):
  factory, sizes, params, inputs = case
  loop, scan = factory(**sizes), factory(**sizes, scan=True)
  transform = at_layers(lora(QV, 2), [1, 2])
  delta = trained(loop, params, transform)
  watch = moments(r'attn/(k|out)$|fc2$|down$')

  def taps(model):
    run = lambda p, d, x: model.apply(p, x, d, peft=transform, rows=rows, watch=watch).taps
    return jax.jit(run)

  want = taps(loop)(params, delta, inputs)
  got = taps(scan)(stack_blocks(params, loop.depth), delta, inputs)
  assert set(got) == set(want) and len(want) == 3 * loop.depth
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_scan_asks_each_layer_by_its_own_name(sizes, params, images):
  """Also where the answer differs in a number, or in an array, and not in its shape."""
  loop, scan = vit(**sizes), vit(**sizes, scan=True)
  stacked = stack_blocks(params, 3)
  factors = {f'block_{i}/mlp/fc1': jnp.full(1, 2.0 + i) for i in range(3)}
  watches = [
    lambda site, args, out: out.sum() if re.search('block_[02]/mlp/fc1', site.path) else None,
    lambda site, args, out: out.sum() * site.layer if site.path.endswith('fc1') else None,
    lambda site, args, out: out * factors[site.path] if site.path in factors else None,
  ]
  for watch in watches:
    want = loop.apply(params, images, watch=watch).taps
    got = scan.apply(stacked, images, watch=watch).taps
    assert set(got) == set(want)
    for name, value in want.items():
      np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('scan', [False, True])
def test_what_is_watched_has_gradients(sizes, params, images, scan):
  """Through remat, too: a penalty on activations, as for the balance of experts."""
  model = vit(**sizes, scan=scan, remat=None if scan else jax.checkpoint_policies.nothing_saveable)
  params = shaken(params, 1)
  weights = stack_blocks(params, 3) if scan else params
  transform = lora(QV, 2)
  delta = trained(vit(**sizes), params, transform)
  watch = lambda site, args, out: jnp.square(out).mean() if site.path.endswith('fc2') else None

  def penalty(delta):
    taps = model.apply(weights, images, delta, peft=transform, watch=watch).taps
    return sum(taps.values())

  grad, unravel = jax.flatten_util.ravel_pytree(jax.jit(jax.grad(penalty))(delta))
  size = jnp.linalg.norm(grad)
  along = jax.jit(
    lambda t: penalty(jax.tree.map(lambda a, g: a + t * g / size, delta, unravel(grad)))
  )
  np.testing.assert_allclose((along(1e-2) - along(-1e-2)) / 2e-2, size, rtol=1e-2)


@pytest.mark.parametrize('scan', [False, True])
def test_what_is_not_watched_costs_nothing(sizes, params, images, scan):
  model = vit(**sizes, scan=scan)
  weights = stack_blocks(params, 3) if scan else params

  def flops(**how):
    run = jax.jit(lambda p, x: model.apply(p, x, **how).tokens)
    return run.lower(weights, images).cost_analysis()['flops']

  assert flops() == flops(watch=None) == flops(watch=lambda *_: None)


def test_a_tap_says_the_stack_and_the_layer_of_its_sites():
  found = []
  tap = tap_of(None, {}, lambda site, *_: found.append(site), {}, stack='text', layer=3)
  assert tap(Site('linear', 'text/block_3/fc'), lambda x: x + 1, 1) == 2
  assert found == [Site('linear', 'text/block_3/fc', stack='text', layer=3)]
