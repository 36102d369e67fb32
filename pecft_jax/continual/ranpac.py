"""RanPAC: random projections and a ridge classifier (McDonnell et al., 2023, arXiv:2307.02251)."""

import jax
import jax.numpy as jnp

from pecft_jax.continual.base import (
  abstract_delta,
  from_forward,
  head_logits,
  model,
  only,
  zero_head,
)
from pecft_jax.continual.memory.statistics import gram, one_hot
from pecft_jax.typing import (
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Output,
  PeftTransform,
)

RIDGES = tuple(10.0**power for power in range(-8, 9))


def ranpac(
  backbone: Backbone,
  peft: PeftTransform,
  capacity: Capacity,
  *,
  projection: int = 10_000,
  seed: int = 0,
) -> ContinualMethod:
  """Trains the delta on the first task only; then solves ridge regressions exactly.

  h = relu(f(x) R) with R a fixed Gaussian matrix [D, M]; G = sum h h^T and
  Q = sum h y^T are carried from task to task, so the classifier
  (G + ridge I)^-1 Q does not depend on the order of the data. The ridge is
  the one of 10^-8 .. 10^8 with the least squared error on a fifth of the
  task's data after fitting the others, as in the authors' code.

  M-wide features are never held: all that is kept are sums. Sums and solves
  are in float32 at the highest matmul precision, so ridges that are lost in
  the rounding of G are left out.

  Args:
    backbone: frozen.
    peft: what the first task trains; `linear_probe()` for the backbone as it is.
    capacity: tasks and classes of the sequence.
    projection: M.
    seed: of R, which is drawn anew wherever it is needed and carried nowhere.

  Raises:
    ValueError: if the transform finds no site in the backbone.
  """
  net = model(backbone, peft)
  anything = bool(jax.tree.leaves(abstract_delta(backbone, peft)))
  classes = capacity.classes

  def init(key, frozen):
    params = {'delta': net.init(key, frozen), 'head': zero_head(backbone.width, classes)}
    square, cross = jnp.zeros((projection, projection)), jnp.zeros((projection, classes))
    memory = {
      'gram': square,
      'cross': cross,
      'held_gram': jnp.zeros_like(square),  # Of the task's held-out examples.
      'held_cross': jnp.zeros_like(cross),
      'fit_gram': jnp.zeros_like(square),  # Of its other examples.
      'fit_cross': jnp.zeros_like(cross),
      'weights': jnp.zeros_like(cross),
      'ridge': jnp.zeros(()),
    }
    return params, memory

  def forward(params, memory, env, x, key):
    del memory
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head_logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def projected(params, env, x):
    key = jax.random.key(seed, impl='threefry2x32')
    draw = jax.random.normal(key, (backbone.width, projection))
    features = net.features(env.frozen, params['delta'], x)
    return jax.nn.relu(jnp.matmul(features, draw, precision='highest'))

  def consolidate(params, memory, env, batch):
    h = projected(params, env, batch.x)
    held = batch.valid & held_out(batch.index)
    fit = batch.valid & ~held
    out = dict(memory)
    for name, rows in (('held', held), ('fit', fit)):
      targets = one_hot(batch.y, rows, classes)
      out[f'{name}_gram'] = memory[f'{name}_gram'] + gram(h, rows)
      cross = jnp.matmul(h.T, targets, precision='highest')
      out[f'{name}_cross'] = memory[f'{name}_cross'] + cross
    return out

  def end_task(params, memory, env):
    del env
    fit = memory['fit_gram'], memory['fit_cross']
    held = memory['held_gram'], memory['held_cross']
    g = memory['gram'] + fit[0] + held[0]
    q = memory['cross'] + fit[1] + held[1]
    ridge = best_ridge(fit, held, least=jnp.finfo(g.dtype).eps * jnp.trace(g))
    weights, ridge = solve_surely(g, q, ridge)
    clear = {
      name: jnp.zeros_like(memory[name])
      for name in ('held_gram', 'held_cross', 'fit_gram', 'fit_cross')
    }
    return params, {**clear, 'gram': g, 'cross': q, 'weights': weights, 'ridge': ridge}

  def predict(params, memory, env, x):
    scores = jnp.matmul(projected(params, env, x), memory['weights'], precision='highest')
    return only(env.task.seen, scores)

  return from_forward(
    'ranpac',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    consolidate=consolidate,
    end_task=end_task,
    predict=predict,
    trains=lambda task: anything and task == 0,
  )


def held_out(index: Array) -> Array:
  """A fifth of all rows [B] bool, of any eight in a row at least one.

  Fibonacci hashing spreads them evenly, whatever the period in which classes
  follow one another in the data.
  """
  return index.astype(jnp.uint32) * jnp.uint32(2654435769) < jnp.uint32(2**32 // 5)


def solve_ridge(g: Array, q: Array, ridge: Array) -> Array:
  """(G + ridge I)^-1 Q by Cholesky: [M, M], [M, C], [] -> [M, C]; NaN where it is singular."""
  factor = jax.scipy.linalg.cho_factor(g + ridge * jnp.eye(g.shape[0]), lower=True)
  return jax.scipy.linalg.cho_solve(factor, q)


def solve_surely(g: Array, q: Array, ridge: Array) -> tuple[Array, Array]:
  """`solve_ridge` with the first of ridge, 10 ridge, .. that is solvable; also returns that one."""

  def unsolved(carry):
    w, ridge = carry
    return ~jnp.isfinite(w).all() & (ridge < RIDGES[-1])

  def stronger(carry):
    ridge = 10 * carry[1]
    return solve_ridge(g, q, ridge), ridge

  return jax.lax.while_loop(unsolved, stronger, (solve_ridge(g, q, ridge), ridge))


def best_ridge(
  fit: tuple[Array, Array], held: tuple[Array, Array], *, least: Array | float
) -> Array:
  """The ridge of `RIDGES` with the least squared error on held-out examples.

  |H W - Y|^2 = tr(W^T G W) - 2 tr(W^T Q) + |Y|^2 needs the held-out sums only.
  It is a difference of large terms where W is large. With a ridge of at least
  eps tr(G) it is not: |W|^2 <= |Y|^2 / (4 ridge), so the rounding of the first
  term, eps tr(G) |W|^2, stays below |Y|^2 / 4, and in practice far below.

  Args:
    fit: G [M, M] and Q [M, C] of the examples that W is solved from.
    held: G and Q of the others.
    least: smaller ridges are not considered.

  Returns:
    [] float32; the largest ridge if no system could be solved.
  """
  ridges = jnp.asarray(RIDGES)

  def error(ridge):
    w = solve_ridge(*fit, ridge)
    squares = (w * jnp.matmul(held[0], w, precision='highest')).sum()
    return squares - 2 * (w * held[1]).sum()

  skip = lambda ridge: jnp.asarray(jnp.inf)
  errors = jax.lax.map(lambda ridge: jax.lax.cond(ridge >= least, error, skip, ridge), ridges)
  errors = jnp.where(jnp.isfinite(errors), errors, jnp.inf)
  # Where nothing is solvable all are infinite, and the strongest ridge is the safe one.
  return jnp.where(jnp.isfinite(errors).any(), ridges[jnp.argmin(errors)], ridges[-1])
