"""KeepLoRA: continual learning with residual gradient adaptation (Luo et al., 2026,
arXiv:2601.19659).

Each task learns W + A (B - B_0) with A [d_in, r] fixed. A spans the leading input directions of the
gradient of W, less those that the pre-trained weights or old tasks read.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.continual.core import as_linear, from_forward, model, new_head
from pecft_jax.continual.lowrank.gpm import with_share
from pecft_jax.continual.lowrank.inflora import second_moments
from pecft_jax.continual.lowrank.sums import added, need_lora, products
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.peft.weights import read
from pecft_jax.problems import need_row_of_answers
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Head,
  Once,
  Output,
  PeftTransform,
)


def _default_peft() -> PeftTransform:
  return lora(r'attn/(q|k|v|out)$', rank=16, alpha=1)


@about(
  'method',
  'low-rank',
  Paper('KeepLoRA: continual learning with residual gradient adaptation', '2601.19659'),
  needs=('LoRA factors',),
  carries='the sum of past products, d_in x d_out per site, and a projector d_in x d_in',
  tiny=lambda backbone, capacity: keeplora(
    backbone, capacity, peft=lora('.', rank=2, alpha=2), threshold=0.6, kept=0.5
  ),
  switches=(
    Switch(
      'of_outputs',
      True,
      'the directions that are protected for the sake of the pre-trained weights are those of what '
      'a site gives, where those of what it reads were meant; sites have to be square',
      'MaolinLuo/KeepLoRA, its experiments with CLIP',
    ),
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': linear})
def keeplora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  threshold: float = 0.99,
  kept: float = 0.85,
  of_outputs: bool = False,
) -> ContinualMethod:
  """Learns each task in the leading gradient directions that neither weights nor old tasks read.

  A projector P per site protects input directions: at first the fewest that hold a share `kept` of
  the squared singular values of the frozen W, general knowledge; after each task, whose inputs a
  pass gathers with the new weights, so many more that P holds a share `threshold` of their energy.
  Before a task trains, a pass over its data gives the mean gradient G of its loss with respect to
  W. With U S V^T the singular value decomposition of (I - P) G, A is the r leading columns of U and
  B starts at B_0, the rows of S V^T to them. B alone is trained, and scale x A B_0 is taken off W,
  so that the function is the same at the start. The training softmax is over the task's own
  classes.

  In the paper classes are told by CLIP's text encoder; here a head is trained. Columns of it that
  are still zero give no gradient, and are random while G is gathered. The authors' code takes one
  direction of the weights less, and for the experiments with CLIP it adds up the inputs of all
  batches by their place in the batch before it decomposes them; here each counts by itself.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; by default of rank 16 with a scale of 1 / 16 on all linear maps of
      attention, as in the authors' code.
    head: what classifies features; `linear()` by default.
    threshold: share of the energy of a task's inputs that is protected, in (0, 1].
    kept: share of that of the frozen weights, in [0, 1].
    of_outputs: protect directions of what sites give for the sake of the weights.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, shares out of their range,
      `of_outputs` with a site that is not square, or a problem as in `finetune`.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import keeplora
  >>> from pecft_jax.typing import Capacity
  >>> keeplora(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'keeplora'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'keeplora')
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  shapes = need_lora('KeepLoRA', backbone, peft)
  _check(shapes, threshold, kept, of_outputs)
  whole = added(shapes)
  alone = model(backbone, whole)
  both = model(backbone, chain(past=whole, now=peft))
  zeros = functools.partial(_zeros, shapes)

  def init(key, frozen):
    def general(path: str) -> Array:
      w = read(frozen, path).main.astype(jnp.float32)
      return with_share(
        jnp.zeros((len(w), len(w))), _gram(w.T if of_outputs else w), jnp.asarray(kept)
      )

    state = new_head(head, key, backbone, capacity)
    return {'up': zeros('up'), 'head': state}, {
      'past': zeros('change'),
      'down': zeros('down'),
      'start': zeros('up'),
      'gradient': zeros('change'),
      'examples': jnp.zeros(()),
      'awake': jax.tree.map(jnp.copy, state),
      'moments': zeros('square'),
      'protected': {path: general(path) for path in shapes},
    }

  def begin_task(params, memory, env, key):
    del env
    awake = params['head'] if head.awake is None else head.awake(key, params['head'])
    fresh = {'gradient': zeros('change'), 'examples': jnp.zeros(())}
    return params, {**memory, **fresh, 'awake': jax.tree.map(jnp.copy, awake)}

  def gather(params, memory, env, batch):
    """Adds the gradient of the sum of a batch's losses with respect to the weights of each site."""
    del params

    def total(past):
      logits = head.logits(memory['awake'], alone.features(env.frozen, past, batch.x))
      losses = capacity.problem.losses(logits, batch.y, env.task.classes)
      return jnp.where(batch.valid, losses, 0).sum()

    more = jax.tree.map(jnp.add, memory['gradient'], jax.grad(total)(memory['past']))
    return {**memory, 'gradient': more, 'examples': memory['examples'] + batch.valid.sum()}

  def design(params, memory, env, key):
    del env, key
    count = jnp.maximum(memory['examples'], 1)
    made = {
      path: residual_directions(g / count, memory['protected'][path], shapes[path].a.shape[1])
      for path, g in memory['gradient'].items()
    }
    down = {path: each.a for path, each in made.items()}
    start = {path: each.b for path, each in made.items()}
    up = jax.tree.map(jnp.copy, start)
    return {**params, 'up': up}, {
      **memory, 'down': down, 'start': start, 'gradient': zeros('change'),
    }  # fmt: skip

  def now(params, memory) -> dict[str, Any]:
    held = jax.lax.stop_gradient({name: memory[name] for name in ('down', 'start')})
    moved = {path: up - held['start'][path] for path, up in params['up'].items()}
    return {path: LoraDelta(held['down'][path], moved[path]) for path in shapes}

  def run(params, memory, env, x, key, watch=None, rows: int | None = 1):
    delta = {'past': jax.lax.stop_gradient(memory['past']), 'now': now(params, memory)}
    return both.run(env.frozen, delta, x, key, watch=watch, rows=rows)

  def forward(params, memory, env, x, key):
    features = run(params, memory, env, x, key).pooled
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def consolidate(params, memory, env, batch):
    watch = second_moments(shapes, batch.valid)
    taps = run(params, memory, env, batch.x, None, watch, rows=None).taps
    moments = {path: memory['moments'][path] + taps[f'linear:{path}'] for path in shapes}
    return {**memory, 'moments': moments}

  def end_task(params, memory, env):
    del env
    grow = lambda old, moments: with_share(old, moments, jnp.asarray(threshold))
    memory = {
      **memory,
      'past': jax.tree.map(jnp.add, memory['past'], products(peft, now(params, memory))),
      'protected': jax.tree.map(grow, memory['protected'], memory['moments']),
      'moments': zeros('square'),
      'start': zeros('up'),
    }
    # The product now acts through the sum; acting twice would double it.
    return {**params, 'up': zeros('up')}, memory

  def adapted(params, memory, env):
    del env
    return Adapted(whole, memory['past'], as_linear(head, params['head']))

  return from_forward(
    'keeplora',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    prepare=gather,
    consolidate=consolidate,
    end_task=end_task,
    phases=(Once('design', design, after='prepare'),),
    adapted=adapted,
    head=head,
    renewed=('up',),
  )


def residual_directions(gradient: Array, protected: Array, rank: int) -> LoraDelta:
  """The r leading parts of (I - P) G, as U and S V^T; zero where there is no gradient left.

  Args:
    gradient: G [d_in, d_out]
    protected: P [d_in, d_in], a projector.
    rank: r, at most the smaller side of G.
  """
  free = gradient - jnp.matmul(protected, gradient, precision='highest')
  u, s, vt = jnp.linalg.svd(free, full_matrices=False)
  u, s, vt = u[:, :rank], s[:rank], vt[:rank]
  # Columns to singular values of zero are arbitrary, and could be protected ones.
  used = s > 1e-5 * jnp.linalg.norm(gradient)
  return LoraDelta(u * used, vt * (s * used)[:, None])


def _zeros(shapes: Mapping[str, LoraDelta], kind: str) -> dict[str, Array]:
  """Zeros for each site, of the shape of A, B, the weights, or the square of the inputs."""

  def size(each: LoraDelta) -> tuple[int, int]:
    (d_in, rank), d_out = each.a.shape, each.b.shape[1]
    return {
      'down': (d_in, rank), 'up': (rank, d_out), 'change': (d_in, d_out), 'square': (d_in, d_in),
    }[kind]  # fmt: skip

  return {path: jnp.zeros(size(each)) for path, each in shapes.items()}


def _check(
  shapes: Mapping[str, LoraDelta], threshold: float, kept: float, of_outputs: bool
) -> None:
  if not 0 < threshold <= 1:
    raise ValueError(f'expected a threshold in (0, 1], got {threshold}')
  if not 0 <= kept <= 1:
    raise ValueError(f'expected kept in [0, 1], got {kept}')
  sizes = {path: (each.a.shape[0], each.b.shape[1]) for path, each in shapes.items()}
  oblong = {path: size for path, size in sizes.items() if size[0] != size[1]}
  if of_outputs and oblong:
    raise ValueError(f'of_outputs needs sites with as many outputs as inputs, got {oblong}')


def _gram(w: Array) -> Array:
  """W W^T, whose eigenvectors are the left singular vectors of W: [d_in, d_in]"""
  return jnp.matmul(w, w.T, precision='highest')
