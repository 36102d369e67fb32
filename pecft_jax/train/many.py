"""Many adapters trained at once on one frozen model, from batches that mix their examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.typing import Array, Params


class Adapters(NamedTuple):
  """N adapters, and an optimizer's state for each.

  Attributes:
    params: what is trained, with a leading axis [N, ...] on every leaf: deltas, heads, ...
    opt_state: [N, ...] on every leaf.
  """

  params: Any
  opt_state: Any


class AdapterLog(NamedTuple):
  """What a step did.

  Attributes:
    losses: [N], the mean over each adapter's examples; 0 where it had none.
    counts: [N] int32, its examples in the batch.
  """

  losses: Array
  counts: Array


class ManyAdapters(NamedTuple):
  """Pure functions that train N adapters.

  Attributes:
    init: `(params [N, ...]) -> Adapters`
    step: `(adapters, frozen, inputs [B, ...], targets [B, ...], slots [B], valid [B]) -> (Adapters,
      AdapterLog)`. To be compiled once, with `jax.jit(step, donate_argnums=0)`.
  """

  init: Callable[[Any], Adapters]
  step: Callable[..., tuple[Adapters, AdapterLog]]


def many_adapters(
  losses: Callable[[Any, Params, Any, Any, Array], Array], optimizer: optax.GradientTransformation
) -> ManyAdapters:
  """Steps that train each adapter on its own examples of a mixed batch, as if it were alone.

  The loss of an adapter is the mean over its valid examples in the batch, and each adapter has an
  optimizer of its own: counts, moments and norms of gradients are those of its own updates. One
  without an example in a batch is left as it is, and its optimizer, too. The frozen model is there
  once, and passes are of the whole batch.

  Args:
    losses: `(params, frozen, inputs, targets, slots) -> [B]`, the loss of each example with the
      adapter `slots[i]` alone; `pecft_jax.peft.per_example` applies it.
    optimizer: any of optax, for one adapter.

  Returns:
    Functions for any number of adapters.

  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.peft import bank, lora, per_example, take
  >>> model, peft = pretrained('vit_glyphs16'), lora(r'attn/q$', rank=2)
  >>> features = per_example(model.backbone.apply, peft)
  >>> def losses(params, frozen, x, y, slots):
  ...   h = features(frozen, x, params['delta'], slots).pooled
  ...   logits = jnp.einsum('bd,bdc->bc', h, take(params['head'], slots))
  ...   return optax.softmax_cross_entropy_with_integer_labels(logits, y)
  >>> delta = bank(peft, 3).init(jax.random.key(0), model.backbone.sites, model.params)
  >>> three = many_adapters(losses, optax.adamw(1e-3))
  >>> state = three.init({'delta': delta, 'head': jnp.zeros((3, 96, 4))})
  >>> x, y, slots = jnp.ones((2, 16, 16, 1)), jnp.array([0, 3]), jnp.array([2, 2])
  >>> state, log = three.step(state, model.params, x, y, slots, jnp.array([True, True]))
  >>> log.counts.tolist(), [round(loss, 3) for loss in log.losses.tolist()]
  ([0, 0, 2], [0.0, 0.0, 1.386])
  """

  def init(params: Any) -> Adapters:
    return Adapters(params, jax.vmap(optimizer.init)(split_kept(params)[0]))

  def step(
    adapters: Adapters, frozen: Params, inputs: Any, targets: Any, slots: Array, valid: Array
  ) -> tuple[Adapters, AdapterLog]:
    active, kept = split_kept(adapters.params)
    number = jax.tree.leaves(active)[0].shape[0]
    mine = jax.nn.one_hot(slots, number) * valid[:, None]  # [B, N]
    counts = mine.sum(0)
    # Invalid examples may hold anything; gradients of infinite numbers are none, even times 0.
    there = lambda leaf: jnp.where(valid.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)
    inputs = jax.tree.map(lambda leaf: there(leaf).astype(leaf.dtype), inputs)

    def loss_of(active: Any) -> tuple[Array, Array]:
      each = losses(combine(active, kept), frozen, inputs, targets, slots)
      means = jnp.where(valid, each, 0) @ mine / jnp.maximum(counts, 1)
      return means.sum(), means

    grads, means = jax.grad(loss_of, has_aux=True)(active)
    updates, opt_state = jax.vmap(optimizer.update)(grads, adapters.opt_state, active)
    new = optax.apply_updates(active, updates)

    def where_trained(new: Array, old: Array) -> Array:
      return jnp.where((counts > 0).reshape(-1, *[1] * (new.ndim - 1)), new, old)

    params = combine(jax.tree.map(where_trained, new, active), kept)
    opt_state = jax.tree.map(where_trained, opt_state, adapters.opt_state)
    return Adapters(params, opt_state), AdapterLog(means, counts.astype(jnp.int32))

  return ManyAdapters(init, step)
