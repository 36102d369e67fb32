"""OSF: the minor singular part of each weight is trained, away from the principal one
(Nayak et al., 2025, arXiv:2504.07097).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import decomposed
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Kept, PeftTransform


class OsfFrozen(NamedTuple):
  """What a weight was at init: bases of its principal part, and its minor part."""

  AXES = {
    'u_high': ('in', None),
    'v_high': (None, 'out'),
    'u': ('in', None),
    'v': (None, 'out'),
  }

  u_high: Array  # [d_in, k]
  v_high: Array  # [k, d_out]
  u: Array  # [d_in, q]
  s: Array  # [q]
  v: Array  # [q, d_out]


class OsfDelta(NamedTuple):
  """y = x (W + U S V - U_0 S_0 V_0), with q = min(d_in, d_out) - k.

  Hugging Face's OSF: `U_low` = V^T, `S_low` = S, `V_low` = U^T.
  """

  AXES = {'u': ('in', None), 'v': (None, 'out')}

  u: Array  # [d_in, q], minor left singular vectors at init.
  s: Array  # [q], minor singular values at init.
  v: Array  # [q, d_out], minor right singular vectors at init, as rows.
  frozen: Kept  # OsfFrozen


@about(
  'transform',
  'low-rank',
  Paper(
    'Sculpting subspaces: constrained full fine-tuning in LLMs for continual learning',
    '2504.07097',
  ),
  tiny=lambda: osf(),
)
@recorded
def osf(
  pattern: str = r'attn/(q|v)$', rank: int | None = None, *, exact: bool = True
) -> PeftTransform:
  """Trains each weight's minor singular part, with gradients off the principal subspace.

  W = U_h S_h V_h + U S V, the k largest singular values first. U, S and V are trained; gradients of
  U and V are (I - U_h U_h^T) dU and dV (I - V_h^T V_h). What the model does with inputs in the
  principal subspace is what earlier tasks are taken to need. The function is the same at init. At
  each site are trained q (d_in + d_out + 1) numbers, q = min(d_in, d_out) - k, and kept
  min(d_in, d_out) (d_in + d_out) + q.

  An optimizer such as AdamW steps out of the subspace that its gradients lie in. With `exact` U and
  V are put back after each update; the code of the paper and Hugging Face's peft do not do that.
  The paper also chooses k for each layer, by how like its outputs are to its inputs, and decomposes
  the updated weights before each task; here k is given, and a delta keeps its decomposition: start
  from a merged model to have another.

  Args:
    pattern: regex searched in the site path.
    rank: k, of the part that is preserved, from 1 to one below the smaller side of the weight; half
      of that side by default.
    exact: keep U and V off the principal subspace after each update.

  Raises:
    ValueError: for a rank below 1; at init, for one that leaves nothing to train.

  >>> import jax
  >>> from pecft_jax.peft import osf
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = osf(r'attn/q$', rank=80)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].u.shape
  (96, 16)
  """
  at_least(1, rank=rank)

  def init_one(key, spec, weights):
    del key  # Deterministic: read off the weights.
    small = min(weights.main.shape)
    k = small // 2 if rank is None else rank
    if not 1 <= k < small:
      raise ValueError(
        f'{spec.site.path}: expected a rank from 1 to {small - 1}, below the smaller side of its '
        f'weight, got {k}'
      )
    return split_at(spec.site.path, weights.main, k)

  def run(delta, next_fn, x, w, b):
    start = delta.frozen.value
    # One product with both minor parts side by side.
    u = jnp.concatenate([_u(delta) * delta.s, start.u * start.s], 1)
    v = jnp.concatenate([_v(delta), -start.v], 0)
    return next_fn(x, w, b) + product(product(x, u), v)

  def update(delta, w):
    del w
    start = delta.frozen.value
    now = jnp.matmul(_u(delta) * delta.s, _v(delta), precision='highest')
    return now - jnp.matmul(start.u * start.s, start.v, precision='highest')

  def after(delta, grads, progress):
    del grads, progress

    def put_back(leaf: OsfDelta) -> OsfDelta:
      start = leaf.frozen.value
      u, v = _off(leaf.u, start.u_high), _off(leaf.v.T, start.v_high.T).T
      return leaf._replace(u=u, v=v)

    return {path: put_back(leaf) for path, leaf in delta.items()}

  each = per_site('linear', pattern, init_one, run, update=update)
  return each._replace(after=after) if exact else each


def split_at(path: str, w: Array, rank: int) -> OsfDelta:
  """The fresh delta of a weight [d_in, d_out] of which `rank` singular values are preserved."""
  u, s, v = decomposed(path, w, rank)
  low = u[:, rank:], s[rank:], v[rank:]
  own_u, own_s, own_v = map(jnp.copy, low)
  return OsfDelta(own_u, own_s, own_v, Kept(OsfFrozen(u[:, :rank], v[:rank], *low)))


def _u(delta: OsfDelta) -> Array:
  return _guided(delta.u, delta.frozen.value.u_high)


def _v(delta: OsfDelta) -> Array:
  return _guided(delta.v.T, delta.frozen.value.v_high.T).T


@jax.custom_vjp
def _guided(x: Array, basis: Array) -> Array:
  """x [d, q], whose gradients are taken off the columns of a basis [d, k]."""
  del basis
  return x


def _guided_forward(x: Array, basis: Array) -> tuple[Array, Array]:
  return x, basis


def _guided_backward(basis: Array, grad: Array) -> tuple[Array, Array]:
  return _off(grad, basis), jnp.zeros_like(basis)


_guided.defvjp(_guided_forward, _guided_backward)


def _off(x: Array, basis: Array) -> Array:
  """x [d, q] without its part in the span of orthonormal columns [d, k]."""
  inside = jnp.matmul(basis.T, x, precision='highest')
  return x - jnp.matmul(basis, inside, precision='highest')
