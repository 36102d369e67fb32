"""Child-Tuning: updates of a part of the weights (Xu et al., 2021, arXiv:2109.05687).

Both forms are transforms. A recipe would see the gradients of heads and prompts, too, and is given
no key, so that its masks would be the same in runs of all seeds; a transform's `with_dropout` has
the key of the update.
"""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.peft.largest import check_share
from pecft_jax.peft.leaves import put_leaves
from pecft_jax.peft.noise import Noisy
from pecft_jax.peft.selective.fish import sensitive_entries
from pecft_jax.peft.selective.select import select_weights
from pecft_jax.peft.sites import site_key
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Key, Params, PeftTransform

PAPER = Paper(
  'Raise a child in large language model: towards effective and generalizable fine-tuning',
  '2109.05687',
)


@about(
  'transform',
  'selective',
  PAPER,
  tiny=lambda: child_tuning_f('attn/(q|v)', share=0.5),
)
@recorded
def child_tuning_f(pattern: str = '', share: float = 0.3) -> PeftTransform:
  """Trains all weights, with the gradients of a random part of them in each update.

  The gradient of each entry becomes g m / p, with m drawn anew from Bernoulli(p) for each update:
  its mean is that of plain fine-tuning. Values, moments and weight decay are those of
  `select_weights`; entries with m = 0 still move by what the optimizer remembers and decays, as in
  the authors' code. Passes without a key (Fisher information, predictions) are not masked.

  All entries of the matching leaves are trained and stored, float32 copies of them at init.
  Clipping by a norm sees masked gradients; in the authors' code it comes before the mask.

  Args:
    pattern: regex searched in the leaf path; all leaves by default.
    share: p, of the entries in an update, in (0, 1].

  Raises:
    ValueError: for a share outside (0, 1]; at init, if the pattern matches no leaf.

  >>> params = {'w': jnp.ones((40, 50))}
  >>> transform = child_tuning_f(share=0.5)
  >>> delta = transform.init(jax.random.key(0), [], params)
  >>> noisy = lambda delta: transform.with_dropout(delta, jax.random.key(1))
  >>> grad = jax.grad(lambda delta: transform.replace(noisy(delta), params)['w'].sum())(delta)
  >>> sorted(set(grad['w'].reshape(-1).tolist()))
  [0.0, 2.0]
  """
  check_share(share)
  whole = select_weights(pattern)

  def value(leaf: Array | Noisy) -> Array:
    return thinned(leaf.leaf, leaf.key, share) if isinstance(leaf, Noisy) else leaf

  def replace(delta: Delta, params: Params) -> Params:
    return put_leaves({name: value(leaf) for name, leaf in delta.items()}, params)

  def with_dropout(delta: Delta, key: Key) -> Delta:
    return {name: Noisy(leaf, site_key(key, name)) for name, leaf in delta.items()}

  return whole._replace(replace=replace, with_dropout=with_dropout)


@about(
  'transform',
  'selective',
  PAPER,
  tiny=lambda: child_tuning_d(share=0.1),
)
@recorded
def child_tuning_d(pattern: str = r'(^|/)block_', share: float = 0.3) -> PeftTransform:
  """Trains the weights to which a task is most sensitive, chosen before it is learned.

  F_i = sum over the task's batches of (d L / d theta_i)^2, with the mean loss L of a batch; the
  K = share x |theta| entries with the largest F among all matching leaves are trained, as in
  `fish`, which squares the gradients of single examples. K numbers are trained, zeros at init, and
  K indices stored. The pass takes one forward and one backward pass of each batch.

  The authors' code also clips the gradient of each leaf before it is squared, which is left out
  here, and decays entries that are not trained; there the weights outside the layers (embeddings,
  pooler) are trained without a mask, here they stay frozen.

  Args:
    pattern: regex searched in the leaf path; the weights of all blocks by default.
    share: of the entries of these leaves, in (0, 1].

  Raises:
    ValueError: for a share outside (0, 1]; at init, if the pattern matches no leaf, or more entries
      than int32 can number.

  >>> from pecft_jax.backbones import pretrained
  >>> model, transform = pretrained('vit_glyphs16'), child_tuning_d('block_5/mlp', share=0.01)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta.values.shape
  (742,)
  """
  return sensitive_entries(pattern, share, each=False, examples=None)


def thinned(x: Array, key: Key, share: float) -> Array:
  """The same values; of their gradient a random share is left, divided by that share."""
  mask = jax.random.bernoulli(key, share, x.shape) / jnp.asarray(share, x.dtype)
  still = jax.lax.stop_gradient(x)
  return still + (x - still) * mask
