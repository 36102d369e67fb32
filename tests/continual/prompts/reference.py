"""A vision transformer with prefixes and prompts in torch, float64, written from the equations.

Shapes differ in all axes: B 5, 3 blocks, D 12, 3 heads of 4, 4 patches.
"""

import functools

import jax
import numpy as np
import torch

from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.typing import Capacity

from ..tiny import CLASSES, batch, frozen_of

DEPTH, HEADS = 3, 3
SMALL = vit(
  image_size=8, channels=1, patch=4, width=12, depth=DEPTH, heads=HEADS, mlp_ratio=1.5,
  mean=(0.45,), std=(0.3,), fused=False,
)  # fmt: skip
CAPACITY = Capacity(tasks=3, classes=7)


@functools.cache
def weights():
  """Of the small model."""
  return frozen_of(SMALL)


def some(t, seed, padding=1):
  """A batch of task t."""
  return batch(SMALL.inputs.shape, CLASSES[t], seed, padding=padding)


def wide(tree):
  """A tree of float64 tensors."""
  return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf, np.float64)), tree)


def trained(tree):
  """A tree of float64 tensors that gradients are taken of."""
  return jax.tree.map(lambda leaf: leaf.requires_grad_(), wide(tree))


def features(images, prefixes=None, prompts=None):
  """The class token after the last norm [B, D].

  Args:
    images: uint8 [B, 8, 8, 1]
    prefixes: by block, `(k, v)`, each [B, P, H, K].
    prompts: by block, tokens [B, P, D] that stand behind the class token, and stay.
  """
  w, prefixes, prompts = wide(weights()), prefixes or {}, prompts or {}
  x = (torch.tensor(np.asarray(images, np.float64)) / 255 - 0.45) / 0.3
  rows = [x[:, i : i + 4, j : j + 4].reshape(len(x), -1) for i in (0, 4) for j in (0, 4)]
  x = torch.stack(rows, 1) @ w['patch']['kernel'] + w['patch']['bias']
  x = torch.cat([w['cls'].expand(len(x), 1, -1), x], 1) + w['pos']
  for i in range(DEPTH):
    if i in prompts:
      x = torch.cat([x[:, :1], prompts[i], x[:, 1:]], 1)
    x = block(w[f'block_{i}'], x, prefixes.get(i))
  return norm(w['norm'], x)[:, 0]


def block(w, x, prefix):
  """One pre-norm block, with learned keys and values before those of its attention."""
  y = norm(w['ln1'], x)
  q, k, v = (
    (y @ w['attn'][n]['kernel'] + w['attn'][n]['bias']).reshape(*x.shape[:2], HEADS, -1)
    for n in 'qkv'
  )
  if prefix is not None:
    k, v = torch.cat([prefix[0], k], 1), torch.cat([prefix[1], v], 1)
  shares = torch.softmax(torch.einsum('bqhk,bthk->bhqt', q, k) / q.shape[-1] ** 0.5, -1)
  y = torch.einsum('bhqt,bthk->bqhk', shares, v).reshape(x.shape)
  x = x + y @ w['attn']['out']['kernel'] + w['attn']['out']['bias']
  y = norm(w['ln2'], x) @ w['mlp']['fc1']['kernel'] + w['mlp']['fc1']['bias']
  y = torch.nn.functional.gelu(y)
  return x + y @ w['mlp']['fc2']['kernel'] + w['mlp']['fc2']['bias']


def norm(w, x):
  """Layer normalisation."""
  return torch.nn.functional.layer_norm(x, x.shape[-1:], w['scale'], w['bias'], 1e-6)


def masked_loss(logits, some, classes, extra=0.0):
  """The mean over valid rows of the cross-entropy among some classes, and of what is added."""
  among = logits[:, list(classes)]
  right = torch.tensor(np.asarray(some.y, np.int64) - classes[0])
  each = torch.nn.functional.cross_entropy(among, right % len(classes), reduction='none') + extra
  return each[torch.tensor(some.valid)].mean()


def cosines(a, b):
  """[B, D], [M, D] -> [B, M]"""
  unit = lambda x: x / x.norm(dim=-1, keepdim=True)
  return unit(a) @ unit(b).T


def grads(tree):
  """The gradients of a tree of tensors, zero where there is none."""
  empty = lambda leaf: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
  return jax.tree.map(lambda leaf: empty(leaf).numpy(), tree)
