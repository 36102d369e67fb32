"""GPM: gradient projection memory (Saha et al., 2021, arXiv:2103.09762), on the factors of LoRA.

The factors A [d_in, r] and B [r, d_out] are linear layers, one after the other: A reads the input
x of its site, B reads x A. An update of A at right angles to old x and one of B at right angles
to old x A leave x A B as it was for old examples.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.bounds.finetune import finetune
from pecft_jax.continual.core import model
from pecft_jax.continual.lowrank.inflora import second_moments
from pecft_jax.continual.lowrank.sums import need_lora
from pecft_jax.continual.wrappers.wrap import wrap
from pecft_jax.heads import linear
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Backbone, Capacity, ContinualMethod, Head, PeftTransform


@about(
  'method',
  'low-rank',
  Paper('Gradient projection memory for continual learning', '2103.09762'),
  needs=('LoRA factors',),
  carries='two projectors per site, d_in x d_in and r x r',
  tiny=lambda backbone, capacity: gpm(backbone, capacity, peft=lora('.', rank=2), threshold=0.6),
)
@recorded(defaults={'peft': lora, 'head': linear})
def gpm(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  threshold: float = 0.97,
  growth: float = 0.003,
) -> ContinualMethod:
  """Trains one LoRA, whose updates leave out the directions of the inputs of old tasks.

  After each task, a pass over its data gives the second moments H = sum x x^T of what
  each factor reads. The directions that old ones lack, the leading eigenvectors of
  (I - P) H (I - P), join the projector P until it holds a share eps_t = eps + growth x t
  of the trace of H (eq. 9); H is d x d, so no matrix of all inputs is decomposed. From the second
  task on each update D becomes (I - P) D. What is projected is the update itself: under SGD that
  is the paper's projected gradient, and Adam's rates per parameter do not turn it back.

  The training softmax is over the task's own classes, and the head is not projected: in
  the paper each task has a head of its own. The authors' code takes one direction less
  after the first task, and the inputs of 125 examples; here they are those of all.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; `lora()` by default.
    head: what classifies features; `linear()` by default.
    threshold: eps, in (0, 1]; the authors' for CIFAR-100 by default.
    growth: of the share per task; it ends at 1.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, a threshold outside (0,
      1], a negative growth, or a problem as in `finetune`.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import gpm
  >>> from pecft_jax.typing import Capacity
  >>> gpm(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'gpm'
  """
  at_least(0, growth=growth)
  if not 0 < threshold <= 1:
    raise ValueError(f'expected a threshold in (0, 1], got {threshold}')
  peft = lora() if peft is None else peft
  inner = finetune(backbone, capacity, peft=peft, head=head, masked=True)
  shapes = need_lora('GPM', backbone, peft)
  net = model(backbone, peft)

  def squares():
    """Zeros for what each factor reads, by site."""
    square = lambda a: jnp.zeros((a.shape[0],) * 2)
    return {path: LoraDelta(square(each.a), square(each.b)) for path, each in shapes.items()}

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    return params, {'inner': memory, 'moments': squares(), 'old': squares()}

  def observe(params, memory, env, batch, out, update, key):
    del batch, out, key
    left = lambda now, before: jax.lax.cond(
      env.task.index > 0, lambda d: without(memory['old'], *d), lambda d: d[0], (now, before)
    )
    return {**params, 'delta': left(params['delta'], update.before['delta'])}, memory

  def consolidate(params, memory, env, batch):
    watch = second_moments(shapes, batch.valid)
    taps = net.run(env.frozen, params['delta'], batch.x, None, watch=watch, rows=None).taps

    def more(path, old):
      a, inputs = params['delta'][path].a, taps[f'linear:{path}']
      # What B reads is x A, and its moments are those of x between the two.
      between = jnp.matmul(a.T, jnp.matmul(inputs, a, precision='highest'), precision='highest')
      return LoraDelta(old.a + inputs, old.b + between)

    return {**memory, 'moments': {path: more(path, m) for path, m in memory['moments'].items()}}

  def end_task(params, memory, env):
    share = jnp.minimum(threshold + growth * env.task.index, 1)
    grow = lambda old, moments: with_share(old, moments, share)
    old = jax.tree.map(grow, memory['old'], memory['moments'])
    return params, {**memory, 'old': old, 'moments': squares()}

  made = wrap(inner, 'gpm', init=init, observe=observe, consolidate=consolidate, end_task=end_task)
  return made._replace(name='gpm')


def without(old: Any, now: Any, before: Any) -> Any:
  """Parameters `now`, less the part of their change in the span of old inputs.

  Args:
    old: projectors [d, d] on it, in the structure of the parameters.
    now: [d, ...] each.
    before: what they changed from.
  """
  take = lambda p, a, b: a - jnp.matmul(p, a - b, precision='highest')
  return jax.tree.map(take, old, now, before)


def with_share(old: Array, moments: Array, share: Array) -> Array:
  """The projector on the old directions, and on the fewest new ones for a share of the trace.

  Args:
    old: P [d, d]
    moments: H [d, d]
    share: [] in (0, 1]

  Returns:
    [d, d]
  """
  total = jnp.trace(moments)
  scaled = moments / jnp.where(total > 0, total, 1)
  rest = jnp.eye(old.shape[0]) - old
  free = jnp.matmul(rest, jnp.matmul(scaled, rest, precision='highest'), precision='highest')
  values, vectors = jnp.linalg.eigh((free + free.T) / 2)
  values, vectors = jnp.maximum(values[::-1], 0), vectors[:, ::-1]  # The largest first.
  before = 1 - values.sum() + jnp.cumsum(values) - values
  # Below 1e-6 of the trace there is nothing but rounding.
  use = (before < share) & (values > 1e-6) & (total > 0)
  new = vectors * use
  return old + jnp.matmul(new, new.T, precision='highest')
