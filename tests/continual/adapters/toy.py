"""The toy model with a LoRA, and losses on it, in torch, float64, from the equations."""

import jax
import numpy as np
import torch


def wide(leaf):
  """A float64 tensor, or the tensor that it is."""
  return leaf if torch.is_tensor(leaf) else torch.tensor(np.asarray(leaf, np.float64))


def trained(tree):
  """A tree of float64 tensors that gradients are taken of."""
  return jax.tree.map(lambda leaf: wide(leaf).requires_grad_(), tree)


def features(frozen, delta, x):
  """The toy with a LoRA of `lora('fc$')`, or with None [B, 6]."""
  kernel, bias = (wide(frozen['block_0']['fc'][name]) for name in ('kernel', 'bias'))
  if delta is not None:
    kernel = kernel + 2 * wide(delta['block_0/fc'].a) @ wide(delta['block_0/fc'].b)
  flat = ((wide(x) / 255 - 0.5) / 0.25).reshape(len(x), -1)
  return torch.tanh(flat @ kernel + bias)


def masked_loss(logits, some, classes):
  """The mean over valid rows of the cross-entropy among a task's classes, which are consecutive."""
  valid = torch.tensor(some.valid)
  right = torch.tensor(np.asarray(some.y, np.int64))[valid] - classes[0]
  return torch.nn.functional.cross_entropy(logits[valid][:, list(classes)], right)


def cosines(a, b):
  """[B, D], [C, D] -> [B, C]; zero for rows of zeros."""
  unit = lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-9)
  return unit(a) @ unit(b).T
