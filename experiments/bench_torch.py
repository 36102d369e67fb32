"""The peers' side of `bench_peers.py`: plain torch, timm, transformers and peft, in float32.

Frozen parameters have `requires_grad` off throughout, as in the published code.
"""

import importlib
import math
import os
import time
from collections.abc import Callable, Iterable
from typing import Any


def _needed(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise SystemExit(
      f'comparing with torch, timm, transformers and peft needs them: {error}; pip install -e '
      "'.[parity]'"
    ) from error


torch = _needed('torch')
timm = _needed('timm')
transformers = _needed('transformers')
peft = _needed('peft')
functional = torch.nn.functional
torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.manual_seed(0)

CLASSES, BATCH, WIDTH = 100, 8, 768
PROJECTION, EXAMPLES = 10_000, 5_000
RIDGES = [10.0**power for power in range(-8, 9)]
Step = Callable[[], dict[str, float]]
IMAGES = torch.randn(BATCH, 3, 224, 224)
LABELS = torch.arange(BATCH) % 10


def matmul_rate(size: int = 2048) -> float:
  """FLOP/s of a float32 matrix product [size, size], the best of three."""
  x = torch.ones(size, size)
  return 2 * size**3 / min(_timed(lambda: x @ x) for _ in range(3))


def _timed(call: Callable[[], Any]) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def _frozen_vit() -> Any:
  vit = timm.create_model('vit_base_patch16_224', pretrained=False, num_classes=0)
  return vit.eval().requires_grad_(False)


def _training(parameters: Iterable[Any], loss: Callable[[], Any]) -> tuple[Step, dict[str, float]]:
  optimizer = torch.optim.Adam(parameters, lr=1e-3)

  def update() -> None:
    optimizer.zero_grad(set_to_none=True)
    loss().backward()
    optimizer.step()

  return lambda: {'step': _timed(update)}, {}


def _entropy(logits: Any) -> Any:
  """Over the classes of the task."""
  mask = torch.arange(CLASSES) < 10
  return functional.cross_entropy(logits.masked_fill(~mask, -math.inf), LABELS)


def features() -> tuple[Step, dict[str, float]]:
  """timm's pooled features."""
  vit = _frozen_vit()

  def run() -> None:
    with torch.inference_mode():
      vit(IMAGES)

  return lambda: {'step': _timed(run)}, {}


def probe() -> tuple[Step, dict[str, float]]:
  """A linear head on them, which is what peers do at every step."""
  vit, head = _frozen_vit(), torch.nn.Linear(WIDTH, CLASSES)

  def loss() -> Any:
    with torch.no_grad():
      x = vit(IMAGES)
    return _entropy(head(x))

  return _training(head.parameters(), loss)


def lora() -> tuple[Step, dict[str, float]]:
  """transformers' ViT under peft's LoRA."""
  vit = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
  sites = r'.*\.(query|value|q_proj|v_proj)'  # Older and newer names.
  model = peft.get_peft_model(vit, peft.LoraConfig(r=8, lora_alpha=16, target_modules=sites))
  trained = [p for p in model.parameters() if p.requires_grad]
  assert len(trained) == 2 * 2 * 12
  head = torch.nn.Linear(WIDTH, CLASSES)
  loss = lambda: _entropy(head(model(pixel_values=IMAGES).last_hidden_state[:, 0]))
  return _training([*trained, *head.parameters()], loss)


def l2p() -> tuple[Step, dict[str, float]]:
  """L2P as published, with a choice of prompts for each example."""
  vit, head = _frozen_vit(), torch.nn.Linear(WIDTH, CLASSES)
  pool, length, top_k, pull = 10, 10, 4, 1.0
  prompts = torch.nn.Parameter(torch.rand(pool, length, WIDTH) * 0.01)
  keys = torch.nn.Parameter(torch.rand(pool, WIDTH) * 0.01)

  def loss() -> Any:
    with torch.no_grad():
      query = functional.normalize(vit(IMAGES), dim=-1)
    near, chosen = (query @ functional.normalize(keys, dim=-1).T).topk(top_k)
    x = vit._pos_embed(vit.patch_embed(IMAGES))
    x = torch.cat([prompts[chosen].flatten(1, 2), x], 1)
    x = vit.norm(vit.blocks(x))[:, : top_k * length].mean(1)
    return _entropy(head(x)) + pull * (1 - near).sum(1).mean()

  return _training([prompts, keys, *head.parameters()], loss)


def ease() -> tuple[Step, dict[str, float]]:
  """An adapter of width 64 beside each MLP."""
  vit, head = _frozen_vit(), torch.nn.Linear(WIDTH, CLASSES)
  adapters = _adapters(vit, WIDTH)
  loss = lambda: _entropy(head(_adapted(vit, adapters, IMAGES)))
  return _training([*adapters.parameters(), *head.parameters()], loss)


def _adapters(vit: Any, width: int) -> Any:
  """A bottleneck of 64 for each block."""
  linear = torch.nn.Linear
  return torch.nn.ModuleList(
    torch.nn.Sequential(linear(width, 64), torch.nn.ReLU(), linear(64, width)) for _ in vit.blocks
  )


def _adapted(vit: Any, adapters: Any, images: Any) -> Any:
  """The class token behind blocks with adapters beside their MLPs."""
  x = vit._pos_embed(vit.patch_embed(images))
  for block, adapter in zip(vit.blocks, adapters, strict=True):
    x = x + block.attn(block.norm1(x))
    x = x + block.mlp(block.norm2(x)) + 0.1 * adapter(x)
  return vit.norm(x)[:, 0]


def subspaces() -> tuple[Step, dict[str, float]]:
  """EASE's prediction: the whole backbone once for each of five sets of adapters."""
  vit = timm.create_model('vit_tiny_patch16_224', pretrained=False, num_classes=0)
  vit, width, images = vit.eval(), 192, torch.randn(32, 3, 224, 224)
  sets = [_adapters(vit, width) for _ in range(5)]
  prototypes = functional.normalize(torch.randn(5, CLASSES, width), dim=-1)

  @torch.inference_mode()
  def predict() -> None:
    found = [_adapted(vit, adapters, images) for adapters in sets]
    sum(functional.normalize(x, dim=-1) @ p.T for x, p in zip(found, prototypes, strict=True))

  return lambda: {'step': _timed(predict)}, {}


def _llama(targets: tuple[str, ...]) -> tuple[Step, dict[str, float]]:
  """transformers' Llama under peft's LoRA, and a head on the last token."""
  sizes = transformers.LlamaConfig(
    vocab_size=32_000,
    hidden_size=512,
    intermediate_size=1376,
    num_hidden_layers=8,
    num_attention_heads=8,
    use_cache=False,
  )
  low_rank = peft.LoraConfig(r=8, lora_alpha=16, target_modules=list(targets))
  model = peft.get_peft_model(transformers.LlamaModel(sizes), low_rank)
  trained = [p for p in model.parameters() if p.requires_grad]
  assert len(trained) == 2 * len(targets) * 8
  head, ids = torch.nn.Linear(512, CLASSES), torch.randint(0, 32_000, (BATCH, 128))
  loss = lambda: _entropy(head(model(input_ids=ids).last_hidden_state[:, -1]))
  return _training([*trained, *head.parameters()], loss)


def llama() -> tuple[Step, dict[str, float]]:
  """On queries and values."""
  return _llama(('q_proj', 'v_proj'))


def llama_all() -> tuple[Step, dict[str, float]]:
  """On all linear layers."""
  attention = tuple(f'{name}_proj' for name in 'qkvo')
  return _llama((*attention, 'gate_proj', 'up_proj', 'down_proj'))


def ranpac() -> tuple[Step, dict[str, float]]:
  """From the features of a task to weights; a refit for each ridge, as the authors do."""
  labels = torch.randint(0, CLASSES, (EXAMPLES,))
  centres = torch.randn(CLASSES, WIDTH)
  x = 0.3 * centres[labels] + 0.5 * torch.randn(EXAMPLES, WIDTH)
  y = functional.one_hot(labels, CLASSES).float()
  draw = torch.randn(WIDTH, PROJECTION)
  eye, fit = torch.eye(PROJECTION), EXAMPLES * 4 // 5

  @torch.no_grad()
  def step() -> dict[str, float]:
    start = time.perf_counter()
    h = torch.relu(x @ draw)
    g, q = h.T @ h, h.T @ y
    summed = time.perf_counter()
    part, cross = h[:fit].T @ h[:fit], h[:fit].T @ y[:fit]
    errors = []
    for ridge in RIDGES:
      weights = torch.linalg.solve(part + ridge * eye, cross)
      errors.append(functional.mse_loss(h[fit:] @ weights, y[fit:]).item())
    ridge = RIDGES[errors.index(min(filter(math.isfinite, errors)))]
    torch.linalg.solve(g + ridge * eye, q)
    end = time.perf_counter()
    return {'whole': end - start, 'end': end - summed}

  return step, {}


CONTESTS: dict[str, Callable[[], tuple[Step, dict[str, float]]]] = {
  each.__name__: each
  for each in (features, probe, lora, l2p, ease, subspaces, llama, llama_all, ranpac)
}
