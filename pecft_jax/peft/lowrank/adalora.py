"""AdaLoRA: a budget of rank that moves between sites (Zhang et al., 2023, arXiv:2303.10512)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import check_below_size
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Kept, PeftTransform


class Importance(NamedTuple):
  """Moving averages over updates, in the shapes of P, l and Q."""

  mean: Any  # Of |w g|.
  change: Any  # Of ||w g| - mean|.


class AdaloraDelta(NamedTuple):
  """y = x W + scale ((x P) * l) Q"""

  AXES = {'p': ('in', 'rank'), 'l': ('rank',), 'q': ('rank', 'out'), 'mask': ('rank',)}

  p: Array  # [d_in, r], normal with deviation 0.02 at init.
  l: Array  # [r], zeros at init.  # noqa: E741 -- the paper's Lambda.
  q: Array  # [r, d_out], normal with deviation 0.02 at init.
  mask: Kept  # [r] bool, triplets within the budget.
  importance: Kept  # Importance of (p, l, q).


@about(
  'transform',
  'low-rank',
  Paper('AdaLoRA: adaptive budget allocation for parameter-efficient fine-tuning', '2303.10512'),
  tiny=lambda: adalora(rank=3, target=2),
)
@recorded
def adalora(
  pattern: str = r'attn/(q|v)$',
  rank: int = 12,
  target: int = 8,
  alpha: float | None = None,
  *,
  warm: float = 0.1,
  hold: float = 0.3,
  beta: float = 0.85,
  orthogonality: float = 0.5,
) -> PeftTransform:
  """Learns P diag(l) Q at each site, and moves a shrinking budget of ranks between sites.

  The importance of an entry is |w g|, smoothed by beta, times the smoothed
  distance from that mean (eqs. 9 to 11); that of a triplet is l's plus the
  means over its column of P and row of Q. All sites share a budget, which falls
  from `rank` to `target` triplets a site along a cubic between the first and
  the last part of a task (eq. 12); the l of all others are set to zero after
  each update. In the last part the choice is fixed. Adds orthogonality x
  mean over P and Q of |P^T P - 1| and |Q Q^T - 1|. Where sources disagree this
  is Hugging Face's: norms are not squared, scores are sums.

  Args:
    pattern: regex searched in the site path.
    rank: r, triplets of each site at the start.
    target: triplets a site, on average, at the end.
    alpha: the update is scaled by alpha / (r + 1e-5); r by default.
    warm: share of a task's updates before the budget falls.
    hold: share of a task's updates after it has fallen.
    beta: of both moving averages.
    orthogonality: weight of the regulariser.

  Raises:
    ValueError: for target > rank, warm + hold of 1 or more, or numbers out of their range; at
      init, for a rank above both sides of a weight.

  Example:
    >>> import jax
    >>> from pecft_jax.backbones import vit
    >>> model = vit(image_size=4, channels=1, patch=2, width=8, depth=1, heads=2,
    ...             mean=(0.5,), std=(0.5,))
    >>> params = model.init(jax.random.key(0))
    >>> delta = adalora(rank=3, target=1).init(jax.random.key(1), model.sites, params)
    >>> delta['block_0/attn/q'].l.shape
    (3,)
  """
  if not 1 <= target <= rank:
    raise ValueError(f'expected 1 <= target <= rank, got target={target} and rank={rank}')
  if warm < 0 or hold < 0 or warm + hold >= 1:
    raise ValueError(f'expected warm + hold below 1, neither negative, got {warm} and {hold}')
  if not 0 <= beta < 1:
    raise ValueError(f'beta must be in [0, 1), got {beta}')
  above(0, alpha=alpha)
  at_least(0, orthogonality=orthogonality)
  scale = (rank if alpha is None else alpha) / (rank + 1e-5)

  def init_one(key, spec, weights):
    check_below_size(spec.site.path, weights.main, rank)
    k_p, k_q = jax.random.split(key)
    d_in, d_out = weights.main.shape
    p = 0.02 * jax.random.normal(k_p, (d_in, rank))
    q = 0.02 * jax.random.normal(k_q, (rank, d_out))
    zeros = lambda: (jnp.zeros((d_in, rank)), jnp.zeros(rank), jnp.zeros((rank, d_out)))
    known = Importance(zeros(), zeros())
    return AdaloraDelta(p, jnp.zeros(rank), q, Kept(jnp.ones(rank, bool)), Kept(known))

  def run(delta, next_fn, x, w, b):
    hidden = product(x, delta.p) * delta.l.astype(x.dtype)
    return next_fn(x, w, b) + product(hidden, delta.q) * jnp.asarray(scale, x.dtype)

  def update(delta, w):
    del w
    return scale * jnp.matmul(delta.p * delta.l, delta.q, precision='highest')

  def after(delta: Delta, grads: Delta, progress: Array) -> Delta:
    known = {path: moved(leaf, grads[path], beta) for path, leaf in delta.items()}
    scores = jnp.stack([triplet_scores(known[path]) for path in delta])  # [S, r]
    fallen = jnp.clip((progress - warm) / (1 - warm - hold), 0, 1)
    sites = len(delta)
    budget = sites * (target + (rank - target) * (1 - fallen) ** 3)
    order = jnp.argsort(jnp.argsort(-scores.reshape(-1), stable=True)).reshape(scores.shape)
    deciding = progress < 1 - hold

    def one(number: int, path: str, leaf: AdaloraDelta) -> AdaloraDelta:
      mask = jnp.where(deciding, order[number] < jnp.round(budget), leaf.mask.value)
      pruned = jnp.where(mask, leaf.l, 0)
      return leaf._replace(l=pruned, mask=Kept(mask), importance=Kept(known[path]))

    return {path: one(i, path, leaf) for i, (path, leaf) in enumerate(delta.items())}

  def penalty(delta: Delta) -> Array:
    norms = [far_from_one(rows) for leaf in delta.values() for rows in (leaf.p.T, leaf.q)]
    return orthogonality * sum(norms, jnp.zeros(())) / len(norms)

  each = per_site('linear', pattern, init_one, run, update=update)
  return each._replace(after=after, penalty=penalty)


def moved(leaf: AdaloraDelta, grads: AdaloraDelta, beta: float) -> Importance:
  """The importance of a site after one more update."""
  old = leaf.importance.value
  mix = lambda before, now: beta * before + (1 - beta) * now
  here = [jnp.abs(w * g) for w, g in zip(leaf[:3], grads[:3], strict=True)]
  mean = tuple(map(mix, old.mean, here))
  away = [jnp.abs(now - m) for now, m in zip(here, mean, strict=True)]
  return Importance(mean, tuple(map(mix, old.change, away)))


def triplet_scores(importance: Importance) -> Array:
  """The importance of each triplet of a site: [r]"""
  p, l, q = (m * c for m, c in zip(*importance, strict=True))  # noqa: E741
  return p.mean(0) + l + q.mean(1)


def far_from_one(rows: Array) -> Array:
  """|R R^T - 1| in Frobenius norm, finite in its gradient at 0: [r, d] -> []"""
  gap = product(rows, rows.T) - jnp.eye(rows.shape[0])
  return jnp.sqrt(jnp.square(gap).sum() + 1e-12)
