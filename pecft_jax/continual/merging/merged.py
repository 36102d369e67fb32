"""Merging of task vectors: one delta per task, and predictions by the merge of all so far.

Task arithmetic (Ilharco et al., 2023, arXiv:2212.04089), TIES (Yadav et al., 2023,
arXiv:2306.01708), DARE (Yu et al., 2024, arXiv:2311.03099), MagMax (Marczak et al., 2024,
arXiv:2407.06322), CoFiMA (Marouf et al., 2024, arXiv:2312.08977).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import as_linear, from_forward, model, new_head, only
from pecft_jax.continual.lowrank.sums import need_lora
from pecft_jax.continual.merging.products import (
  Of,
  dense_sites,
  moved,
  need_common,
  products,
  vector_of,
)
from pecft_jax.continual.merging.rules import RULES, Rule
from pecft_jax.continual.wrappers.importance import summed_gradients
from pecft_jax.heads import linear
from pecft_jax.peft.halves import split_kept
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_row_of_answers
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Backbone,
  Capacity,
  ContinualMethod,
  Delta,
  Gather,
  Head,
  Once,
  Output,
  PeftTransform,
)

Name = Literal['average', 'moving-average', 'task-arithmetic', 'ties', 'dare', 'magmax', 'fisher']


@about(
  'method',
  'merging',
  Paper('Editing models with task arithmetic', '2212.04089'),
  Paper('TIES-Merging: resolving interference when merging models', '2306.01708'),
  Paper(
    'Language models are Super Mario: absorbing abilities from homologous models as a free lunch',
    '2311.03099',
  ),
  Paper('MagMax: leveraging model merging for seamless continual learning', '2407.06322'),
  Paper('Weighted ensemble models are strong continual learners', '2312.08977'),
  carries='the merge and the start, each as large as the delta; with TIES a delta per task',
  needs=('trained delta', 'common places'),
  tiny={
    '': lambda backbone, capacity: merged(
      backbone, capacity, peft=lora('.', rank=2), rule='average', start='pretrained', of='products'
    ),
    'fisher': lambda backbone, capacity: merged(
      backbone, capacity, peft=lora('.', rank=2), rule='fisher', start='merged'
    ),
  },
)
@recorded(defaults={'peft': lora, 'head': linear})
def merged(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  rule: Rule | Name = 'average',
  scale: float | None = None,
  start: Literal['pretrained', 'last', 'merged'] = 'pretrained',
  of: Of = 'leaves',
  masked: bool = True,
) -> ContinualMethod:
  """Trains a delta on each task, and predicts with the merge of the deltas of all tasks so far.

  With tau_t the change of the delta from the start of the sequence to the end of task t, answers
  are those at start + `scale` x merge(tau_1, .., tau_t). The head is not merged: by the masked
  softmax each task trains its own classes' part of it, beside its own delta. A delta is merged
  right after it is trained, so that statistics of the end of a task, as those of `aligned`, are of
  the merged model (but for dense merges).

  Published forms: task arithmetic, TIES and DARE merge tasks that were trained from the pretrained
  model; MagMax trains each task from the `last` one's end (`rule='magmax', start='last'`);
  CoFiMA from the last merge (`rule='fisher', start='merged'`, in `aligned`).

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what is trained; `lora()` by default, `full()` for merges of whole models.
    head: what classifies features; `linear()` by default.
    rule: how task vectors are merged: of `pecft_jax.continual.merging.rules`, or by name with that
      rule's published values.
    scale: of the merge; the rule's own by default.
    start: where each task's training starts: at the delta of the start, where the last task
      ended, or at the last merge.
    of: what is merged. `leaves`: the arrays of the delta one by one; of LoRA these are its factors,
      and a mean of factors is not the mean of products. `products`: A B of each LoRA site, whose
      merge is brought back to factors of the same rank by a singular value decomposition, which
      drops what is beyond it. `dense`: the same without that loss; the merge is a d_in x d_out
      matrix per site, added to the weights. Both carry such matrices.
    masked: leave old classes out of the training softmax.

  Raises:
    ValueError: if the transform trains nothing, is calibrated, or is no LoRA where products are
      merged; for a dense merge as a start, or Fisher information of products; for a problem as in
      `finetune`.

  >>> from pecft_jax.continual import merged
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> backbone = architecture('vit_glyphs16')
  >>> merged(backbone, Capacity(tasks=5, classes=10), rule='ties').name
  'merged'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'merged')
  peft = lora() if peft is None else peft
  head = linear() if head is None else head
  found = RULES[rule]() if isinstance(rule, str) else rule
  size = found.scale if scale is None else scale
  net = model(backbone, peft)
  _check(backbone, peft, found, start, of)
  answering = model(backbone, dense_sites(peft)) if of == 'dense' else net
  # Where the delta is found that training starts from; dense merges leave that of the last task.
  own = None if of == 'dense' else 'last'
  restored = {'pretrained': 'base', 'last': own, 'merged': None}[start]

  def init(key, frozen):
    k_delta, k_rule = jax.random.split(key)
    delta = net.init(k_delta, frozen)
    memory = {
      'base': jax.tree.map(jnp.copy, delta),
      'state': found.init(vector_of(delta, of), capacity.tasks, k_rule),
      **({'dense': products(delta)} if of == 'dense' else {}),
      **({'last': jax.tree.map(jnp.copy, delta)} if restored == 'last' else {}),
      **(_no_squares(delta) if found.fisher else {}),
    }
    return {'delta': delta, 'head': new_head(head, key, backbone, capacity)}, memory

  def begin_task(params, memory, env, key):
    del env, key
    return {**params, 'delta': jax.tree.map(jnp.copy, memory[restored])}, memory

  def forward(params, memory, env, x, key):
    del memory
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def square(params, memory, env, batch):
    likelihood = lambda out, y: capacity.problem.losses(out.logits, y, env.task.seen)[0]
    plain = method._replace(renewed=())
    more = summed_gradients(plain, params, memory, env, batch, likelihood, jnp.square)['delta']
    squares = jax.tree.map(jnp.add, memory['squares'], more)
    return {**memory, 'squares': squares, 'count': memory['count'] + batch.valid.sum()}

  def merge(params, memory, env, key):
    del key
    ends = vector_of(params['delta'], of), vector_of(memory['base'], of)
    change, new, fisher = jax.tree.map(jnp.subtract, *ends), dict(memory), None
    if found.fisher:
      fisher = jax.tree.map(lambda s: s / jnp.maximum(memory['count'], 1), memory['squares'])
      new |= _no_squares(params['delta'])
    new['state'] = found.add(memory['state'], change, fisher, env.task.index)
    tau = jax.tree.map(lambda leaf: size * leaf, found.read(new['state']))
    whole = moved(memory['base'], tau, params['delta'], of)
    if restored == 'last':
      new['last'] = params['delta']
    return (params, {**new, 'dense': whole}) if of == 'dense' else ({**params, 'delta': whole}, new)

  def predict_densely(params, memory, env, x):
    features = answering.features(env.frozen, memory['dense'], x)
    logits = head.logits(params['head'], features)
    return only(env.task.seen, logits) if capacity.problem.classes else logits

  def adapted(params, memory, env):
    del memory, env
    return Adapted(peft, params['delta'], as_linear(head, params['head']))

  squares = (Gather('fisher', square, after='train'),) if found.fisher else ()
  method = from_forward(
    'merged',
    backbone,
    capacity,
    init,
    forward,
    masked=masked,
    begin_task=None if restored is None else begin_task,
    phases=(*squares, Once('merge', merge, after='fisher' if squares else 'train')),
    transforms={'delta': peft},
    head=head,
    renewed=() if restored is None else ('delta',),
    **({'predict': predict_densely} if of == 'dense' else {'adapted': adapted}),
  )
  return method


def _no_squares(delta: Delta) -> dict[str, Any]:
  """Sums for the Fisher information of no example yet."""
  zeros = jax.tree.map(jnp.zeros_like, split_kept(delta)[0])
  return {'squares': zeros, 'count': jnp.zeros(())}


def _check(backbone: Backbone, peft: PeftTransform, rule: Rule, start: str, of: Of) -> None:
  """Raises ValueError for parts that do not go together."""
  need_common('merged', backbone, peft)
  if of != 'leaves':
    need_lora(f'merged of {of}', backbone, peft)
    if rule.fisher:
      raise ValueError(
        f"merged: Fisher information is that of leaves: take of='leaves', got {of!r}"
      )
  if of == 'dense' and start == 'merged':
    raise ValueError("merged: a dense merge is no start of training: take of='products'")
