"""AdapterFusion: attention over the outputs of trained adapters
(Pfeiffer et al., 2021, arXiv:2005.00247).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.arguments import at_least
from pecft_jax.paths import named_leaves, shortened
from pecft_jax.peft.outputs import beside_the_plain
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Kept, Key, Params, PeftTransform, Site, SiteSpec

_SITE = Site('sublayer', 'here')


class FusionDelta(NamedTuple):
  """y + sum_n p_n a_n V, with p = softmax over n of (y Q + q) . (a_n K + k).

  a_n is what adapter n adds to y.
  """

  query: Array  # [D, D], Q, normal with deviation 0.02 at init.
  query_bias: Array  # [D], q, zeros at init.
  key: Array  # [D, D], K, normal with deviation 0.02 at init.
  key_bias: Array  # [D], k, zeros at init.
  value: Array  # [D, D], V, the identity at init, with 1e-6 beside its diagonal.
  adapters: Kept  # Of one site, with a leading axis [N, ...] on every leaf.


@recorded
def adapter_fusion(
  adapter: PeftTransform, deltas: Sequence[Delta], *, pull: float = 0.01
) -> PeftTransform:
  """Learns, at each of their sites, how much to take of several trained adapters.

  The second stage of AdapterFusion: the adapters are frozen, and queries, keys and values are
  trained, 3 D^2 + 2 D numbers at each site. Each token asks by what the sublayer gives. The
  penalty `pull` |V - I|^2, summed over all sites, is part of the training loss, as in AdapterHub's
  code; like there, scores are not divided by sqrt(D). The adapters' own dropout is off.

  Args:
    adapter: the transform that the deltas are of, at `sublayer` sites: serial or parallel adapters.
    deltas: N of them, at least 2, with the same sites and shapes. They count for a run's identity.
    pull: weight of the penalty, at least 0.

  Raises:
    ValueError: for fewer than two deltas, deltas that differ in sites or shapes, a negative pull,
      or a transform that acts at no site; at init, for a model without their sites; while tracing,
      for a transform that changes what its sites read.

  >>> import jax
  >>> from pecft_jax.peft import adapter_fusion, pfeiffer
  >>> from pecft_jax.backbones import pretrained
  >>> model, adapter = pretrained('vit_glyphs16'), pfeiffer(width=4)
  >>> fresh = lambda seed: adapter.init(jax.random.key(seed), model.backbone.sites, model.params)
  >>> transform = adapter_fusion(adapter, [fresh(0), fresh(1)])
  >>> delta = transform.init(jax.random.key(2), model.backbone.sites, model.params)
  >>> delta['block_0/mlp'].adapters.value.down.shape
  (2, 96, 4)
  """
  at_least(0, pull=pull)
  _check_alike(deltas)
  intercept = adapter.intercept
  if intercept is None:
    raise ValueError('adapter_fusion: expected adapters that act at sites, got one without any')
  several = {path: _stacked([delta[path] for delta in deltas]) for path in deltas[0]}

  def init_one(key, spec, weights):
    del weights
    size = spec.out.shape[-1]
    query, keys = (0.02 * jax.random.normal(k, (size, size)) for k in jax.random.split(key))
    zeros, value = jnp.zeros(size), jnp.maximum(jnp.eye(size), 1e-6)
    own = jax.tree.map(jnp.copy, several[spec.site.path])
    return FusionDelta(query, zeros, keys, jnp.copy(zeros), value, Kept(own))

  def run(delta, next_fn, x, stream):
    y = next_fn(x, stream)
    # In float32: what an adapter adds is a small difference.
    args = tuple(each.astype(jnp.float32) for each in (x, stream))
    wide = y.astype(jnp.float32)

    def added(leaf):
      own = {_SITE.path: leaf}
      out, _ = beside_the_plain('adapter_fusion', intercept, own, _SITE, lambda *_: wide, *args)
      return out - wide

    each = [added(jax.tree.map(lambda a, n=n: a[n], delta.adapters.value)) for n in range(count)]
    stacked = jnp.stack(each, 2).astype(y.dtype)  # [B, T, N, D]
    query = product(y, delta.query) + delta.query_bias.astype(y.dtype)
    keys = product(stacked, delta.key) + delta.key_bias.astype(y.dtype)
    scores = jnp.einsum('btd,btnd->btn', query, keys, preferred_element_type=jnp.float32)
    taken = jnp.einsum('btn,btnd->btd', jax.nn.softmax(scores).astype(y.dtype), stacked)
    return y + product(taken, delta.value)

  def penalty(delta: Delta) -> Array:
    apart = [jnp.square(leaf.value - jnp.eye(len(leaf.value))).sum() for leaf in delta.values()]
    return pull * sum(apart, jnp.zeros(()))

  count = len(deltas)
  each = per_site('sublayer', '', init_one, run)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    own = [s for s in sites if s.site.kind == 'sublayer' and s.site.path in several]
    if missing := sorted(several.keys() - {spec.site.path for spec in own}):
      raise ValueError(f"the model has no 'sublayer' sites {shortened(missing)}")
    return each.init(key, own, params)

  return each._replace(init=init, penalty=penalty)


def _check_alike(deltas: Sequence[Delta]) -> None:
  if len(deltas) < 2:
    raise ValueError(f'expected at least two deltas, got {len(deltas)}')
  shapes = [{name: leaf.shape for name, leaf in named_leaves(delta)} for delta in deltas]
  for i, other in enumerate(shapes[1:], 1):
    if other != shapes[0]:
      names = [name for name in {**shapes[0], **other} if shapes[0].get(name) != other.get(name)]
      raise ValueError(
        f'expected deltas of the same sites and shapes, got others at {shortened(names)} of deltas '
        f'0 and {i}'
      )


def _stacked(leaves: Sequence[Delta]) -> Delta:
  return jax.tree.map(lambda *own: jnp.stack(own), *leaves)
