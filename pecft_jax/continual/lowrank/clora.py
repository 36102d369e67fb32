"""C-LoRA: self-regularised low-rank adaptation (Smith et al., 2024, arXiv:2304.06027)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import as_linear, from_forward, model, new_head
from pecft_jax.continual.lowrank.sums import added, need_lora, products
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_row_of_answers
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Backbone,
  Capacity,
  ContinualMethod,
  Head,
  Output,
  PeftTransform,
)


def _default_peft() -> PeftTransform:
  return lora(r'attn/(k|v)$', rank=64, alpha=64)


@about(
  'method',
  'low-rank',
  Paper('Continual diffusion: continual customization of text-to-image diffusion with C-LoRA',
        '2304.06027'),
  needs=('LoRA factors',),
  carries='the sum of past products, d_in x d_out per site',
  tiny=lambda backbone, capacity: clora(backbone, capacity, peft=lora('.', rank=2, alpha=2)),
)  # fmt: skip
@recorded(defaults={'peft': _default_peft, 'head': linear})
def clora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  strength: float = 0.5,
) -> ContinualMethod:
  """Learns each task in a new LoRA that keeps away from the weights which past ones have changed.

  W + sum_{i<=t} A_i B_i, where past products are frozen. The penalty is `strength` x the sum over
  sites of |(sum_{i<t} A_i B_i) * (A_t B_t)|^2, elementwise: a weight that past tasks have moved far
  is costly to move again, one that they have left alone is free. An example is classified among
  its own task's classes while it trains.

  The paper learns diffusion models, with the factors on keys and values of cross-attention. As a
  classifier it is compared in the paper of InfLoRA (arXiv:2404.00228).

  Two methods are called C-LoRA; the other one, by Zhang et al. (arXiv:2502.17920), has a routing
  matrix between its factors, and is `routed_lora`.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; by default of rank 64 on keys and values, with a scale of 1.
    head: what classifies features; `linear()` by default.
    strength: lambda; the sum grows with the fourth power of the scale of products.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, a negative strength, or a
      problem as in `finetune`.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import clora
  >>> from pecft_jax.peft import lora
  >>> from pecft_jax.typing import Capacity
  >>> backbone, capacity = architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)
  >>> clora(backbone, capacity, peft=lora(rank=4)).name
  'clora'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'clora')
  at_least(0, strength=strength)
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  shapes = need_lora('C-LoRA', backbone, peft)
  whole = added(shapes)
  current = model(backbone, peft)
  both = model(backbone, chain(past=whole, now=peft))

  def init(key, frozen):
    params = {
      'delta': current.init(key, frozen),
      'head': new_head(head, key, backbone, capacity),
    }
    zeros = lambda each: jnp.zeros((each.a.shape[0], each.b.shape[1]))
    return params, {'past': {path: zeros(each) for path, each in shapes.items()}}

  def begin_task(params, memory, env, key):
    return {**params, 'delta': current.init(key, env.frozen)}, memory

  def forward(params, memory, env, x, key):
    past = jax.lax.stop_gradient(memory['past'])
    features = both.features(env.frozen, {'past': past, 'now': params['delta']}, x, key)
    logits = head.logits(params['head'], features)
    new = products(peft, params['delta'])
    penalty = strength * sum(jnp.square(past[path] * new[path]).sum() for path in new)
    return Output(logits, jnp.broadcast_to(penalty, logits.shape[:1]), features)

  def end_task(params, memory, env):
    del env
    new = products(peft, params['delta'])
    past = {path: old + new[path] for path, old in memory['past'].items()}
    # The product now acts through the sum; acting twice would double it.
    return {**params, 'delta': jax.tree.map(jnp.zeros_like, params['delta'])}, {'past': past}

  def adapted(params, memory, env):
    del env
    return Adapted(whole, memory['past'], as_linear(head, params['head']))

  return from_forward(
    'clora',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    end_task=end_task,
    adapted=adapted,
    transforms={'delta': peft},
    head=head,
    renewed=('delta',),
  )
