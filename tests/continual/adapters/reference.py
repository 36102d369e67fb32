"""A vision transformer with adapters beside its MLPs in torch, float64, from the equations."""

import torch

from ..prompts.reference import DEPTH, HEADS, norm, weights, wide


def features(images, adapters=None, scale=0.1):
  """The class token after the last norm [B, D].

  Args:
    images: uint8 [B, 8, 8, 1]
    adapters: `{site path: (down, down_bias, up, up_bias)}`, which read what the MLP reads; or a
      function `(stream [B, T, D]) -> [B, T, D]` of what its norm reads, which is added as it is.
    scale: of what they add.
  """
  w, adapters = wide(weights()), adapters or {}
  x = (wide(images) / 255 - 0.45) / 0.3
  rows = [x[:, i : i + 4, j : j + 4].reshape(len(x), -1) for i in (0, 4) for j in (0, 4)]
  x = torch.stack(rows, 1) @ w['patch']['kernel'] + w['patch']['bias']
  x = torch.cat([w['cls'].expand(len(x), 1, -1), x], 1) + w['pos']
  for i in range(DEPTH):
    x = block(w[f'block_{i}'], x, adapters.get(f'block_{i}/mlp'), scale)
  return norm(w['norm'], x)[:, 0]


def block(w, x, adapter, scale):
  """One pre-norm block with an adapter beside its MLP."""
  y = norm(w['ln1'], x)
  q, k, v = (
    (y @ w['attn'][n]['kernel'] + w['attn'][n]['bias']).reshape(*x.shape[:2], HEADS, -1)
    for n in 'qkv'
  )
  shares = torch.softmax(torch.einsum('bqhk,bthk->bhqt', q, k) / q.shape[-1] ** 0.5, -1)
  y = torch.einsum('bhqt,bthk->bqhk', shares, v).reshape(x.shape)
  x = x + y @ w['attn']['out']['kernel'] + w['attn']['out']['bias']
  y = norm(w['ln2'], x)
  hidden = torch.nn.functional.gelu(y @ w['mlp']['fc1']['kernel'] + w['mlp']['fc1']['bias'])
  out = x + hidden @ w['mlp']['fc2']['kernel'] + w['mlp']['fc2']['bias']
  if adapter is None:
    return out
  if callable(adapter):
    return out + adapter(x)
  down, down_bias, up, up_bias = adapter
  return out + scale * (torch.relu(y @ down + down_bias) @ up + up_bias)
