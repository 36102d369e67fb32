"""Lottery-ticket sparse fine-tuning (Ansell et al., 2022, arXiv:2110.07560)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.peft.largest import check_search, check_share, largest
from pecft_jax.peft.leaves import change_leaves, matching_leaves, read_leaves
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Kept, Key, Params, PeftTransform, SiteSpec


class TicketDelta(NamedTuple):
  """W + C for each leaf; all mappings are by leaf name."""

  change: dict[str, Array]  # C, zeros at init.
  start: Kept  # C at the start of the task, float32.
  mask: Kept  # bool, the entries of C that are trained once they are found.
  found: Kept  # [] int32, 1 once they are.


@about(
  'transform',
  'selective',
  Paper('Composable sparse fine-tuning for cross-lingual transfer', '2110.07560'),
  tiny=lambda: lottery_ticket('attn/(q|v)', share=0.1),
)
@recorded
def lottery_ticket(pattern: str = '', share: float = 0.05, *, search: float = 0.5) -> PeftTransform:
  """Trains all weights, then from the start again those that changed the most.

  In the first part of a task all matching weights W + C are trained. Then the K = share x |theta|
  entries with the largest |C - C_start| among all leaves are kept, C is set back to what it was at
  the start of the task, and in the second part these entries alone are trained. At the end of a
  first task C has K entries that are not zero; sums of such changes, of languages and tasks, are
  how they are composed (`weighted`). A delta that learns on keeps the entries of earlier tasks,
  with K more for each one.

  Both parts are of one run, so the optimizer's moments and the schedule of the rate go on where
  the authors start both anew: a `constant` schedule treats the parts alike. C, C_start and a mask
  are as large as the matching weights, and so are the optimizer's moments.

  Args:
    pattern: regex searched in the leaf path; all leaves by default.
    share: of the entries of these leaves, in (0, 1].
    search: share of a task's updates in the first part, in (0, 1).

  Raises:
    ValueError: for numbers out of their range; at init, if the pattern matches no leaf.

  >>> from pecft_jax.backbones import pretrained
  >>> model, transform = pretrained('vit_glyphs16'), lottery_ticket('block_0/attn/q', share=0.01)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> trained = delta._replace(change=jax.tree.map(lambda leaf: leaf + 1, delta.change))
  >>> found = transform.after(trained, None, jnp.asarray(0.5))
  >>> float(found.change['block_0/attn/q/kernel'].max()), int(sum(
  ...   leaf.sum() for leaf in found.mask.value.values()))
  (0.0, 93)
  """
  check_share(share)
  check_search(search)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> TicketDelta:
    del key  # Starts from the weights that are there.
    leaves = read_leaves(params, sites)
    names = matching_leaves(pattern, leaves)
    shapes = {name: jax.eval_shape(leaves[name]).shape for name in names}
    filled = lambda make: {name: make(shape) for name, shape in shapes.items()}
    mask = filled(lambda shape: jnp.ones(shape, bool))
    found = jnp.zeros((), jnp.int32)
    return TicketDelta(filled(jnp.zeros), Kept(filled(jnp.zeros)), Kept(mask), Kept(found))

  def replace(delta: TicketDelta, params: Params) -> Params:
    def plus(change: Array) -> Callable[[Array], Array]:
      return lambda leaf: leaf + change

    return change_leaves({name: plus(change) for name, change in delta.change.items()}, params)

  def after(delta: TicketDelta, grads: Delta, progress: Array) -> TicketDelta:
    del grads
    late = progress >= search

    def find() -> TicketDelta:
      start = delta.start.value
      far = jax.tree.map(lambda now, before: jnp.abs(now - before), delta.change, start)
      mask = largest(far, share)
      return TicketDelta(start, delta.start, Kept(mask), Kept(jnp.ones((), jnp.int32)))

    def go_on() -> TicketDelta:
      start, mask = delta.start.value, delta.mask.value
      stays = lambda now, before, trained: jnp.where(late & ~trained, before, now)
      change = jax.tree.map(stays, delta.change, start, mask)
      # What a next task starts from.
      start = jax.tree.map(lambda now, before: jnp.where(late, now, before), change, start)
      return TicketDelta(change, Kept(start), delta.mask, Kept(late.astype(jnp.int32)))

    return jax.lax.cond(late & (delta.found.value == 0), find, go_on)

  return PeftTransform(init, replace=replace, merge=replace, after=after, selective=True)
