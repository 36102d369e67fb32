"""Next-token prediction on domain after domain: fine-tuning of a decoder."""

from typing import Any

import jax.numpy as jnp

from pecft_jax.about import about
from pecft_jax.continual.core import from_forward, model
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.settings import recorded
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, Output, PeftTransform


@about(
  'method',
  'bounds',
  needs=('texts',),
  tiny=lambda backbone, capacity: language_model(backbone, capacity, peft=lora('.', rank=2)),
)
@recorded(defaults={'peft': lora})
def language_model(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Any = None,
) -> ContinualMethod:
  """Trains one delta on text after text, and does nothing about forgetting.

  The logits of a token are its state times the transposed embedding table, or the checkpoint's own
  head; neither is trained, except by a transform that replaces the table. Answers are logits
  [B, T, V] for the token after each; the matrix of a run holds token accuracy. Wrappers that need
  no classes (`er`, `ewc`, `lwf`) go around it.

  Args:
    backbone: a decoder with weights `embed/table` [V, D], frozen.
    capacity: of the sequence, as in `Capacity(tasks, 1, next_tokens(length))`.
    peft: what is trained of the backbone; `lora()` by default.
    head: {'kernel': [D, V]}, the checkpoint's own language-model head (`Pretrained.head`); None
      where it is tied to the embedding.

  Raises:
    ValueError: for a backbone that reads no texts, a problem without next tokens, a head of another
      shape, or a transform that finds no site.

  >>> from pecft_jax.backbones import decoder
  >>> from pecft_jax.problems import next_tokens
  >>> model = decoder(length=4, vocabulary=9, width=8, depth=1, heads=2, kv_heads=2, hidden=8)
  >>> language_model(model, Capacity(3, 1, next_tokens(4))).capacity.problem.name
  'next_tokens'
  """
  spec, target = backbone.inputs, capacity.problem.target
  if spec.kind != 'tokens':
    raise ValueError(
      f'language_model needs a backbone that reads texts, {backbone.name} reads {spec.what}'
    )
  if target.shape != spec.shape or not jnp.issubdtype(target.dtype, jnp.integer):
    raise ValueError(
      f'language_model predicts the token after each of {spec.shape[0]}, but the problem is '
      f'{capacity.problem.name} with targets {target.dtype}{list(target.shape)}; make the capacity '
      f'as Capacity(tasks, 1, next_tokens({spec.shape[0]}))'
    )
  if head is not None and jnp.shape(head['kernel'])[:1] != (backbone.width,):
    raise ValueError(
      f'expected a head {{"kernel": [{backbone.width}, V]}}, '
      f'got a kernel {list(jnp.shape(head["kernel"]))}'
    )
  peft = lora() if peft is None else peft
  net = model(backbone, peft)

  def init(key, frozen):
    # Carried, so that a run's programs hold no copy of it as a constant.
    memory = {} if head is None else {'head': jnp.array(head['kernel'])}
    return {'delta': net.init(key, frozen)}, memory

  def kernel_of(params, memory, frozen, key):
    if head is not None:
      return memory['head']
    if peft.replace is None:
      return frozen['embed']['table'].T
    delta = params['delta']
    if key is not None and peft.with_dropout is not None:
      delta = peft.with_dropout(delta, key)  # As in the backbone: a table that is tied is one.
    return peft.replace(delta, frozen)['embed']['table'].T

  def forward(params, memory, env, x, key):
    out = net.run(env.frozen, params['delta'], x, key, rows=None)
    kernel = kernel_of(params, memory, env.frozen, key)
    logits = out.tokens.astype(jnp.float32) @ kernel.astype(jnp.float32)
    return Output(logits, jnp.zeros(logits.shape[0]), out.pooled)

  return from_forward(
    'language_model',
    backbone,
    capacity,
    init,
    forward,
    masked=False,
    transforms={'delta': peft},
  )
