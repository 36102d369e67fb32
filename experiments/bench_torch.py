"""The peers' side of the benches: plain torch, timm, transformers and peft.

Frozen parameters have `requires_grad` off throughout, as in the published code. In bfloat16 they
are stored so, what is trained is float32, and autocast does the rest.
"""

import contextlib
import importlib
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

from contest import ADAPTER, CLASSES, PATCH, Contest, Rig, Sizes, Texts


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
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
if DEVICE == 'cuda':
  torch.set_float32_matmul_precision('high')  # As XLA does there by default.
else:
  torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.manual_seed(0)

PROJECTION, EXAMPLES, WIDTH = 10_000, 5_000, 768
RIDGES = [10.0**power for power in range(-8, 9)]


def device() -> str:
  """The name of the device."""
  return torch.cuda.get_device_name() if DEVICE == 'cuda' else DEVICE


def peak_bytes() -> int | None:
  """The most memory that was allocated on the device; None on a CPU."""
  return torch.cuda.max_memory_allocated() if DEVICE == 'cuda' else None


def wait(_: Any) -> None:
  """Until the device has done what it was asked to."""
  if DEVICE == 'cuda':
    torch.cuda.synchronize()


def matmul(rig: Rig) -> Contest:
  """A product of two square matrices, which is the roofline."""
  x = torch.randn(rig.matmul, rig.matmul, device=DEVICE, dtype=_dtype(rig))
  return Contest(lambda: x @ x)


def _dtype(rig: Rig) -> Any:
  return getattr(torch, rig.dtype)


def _autocast(rig: Rig) -> Any:
  if rig.dtype == 'float32':
    return contextlib.nullcontext()
  return torch.autocast(DEVICE, _dtype(rig))


def _images(rig: Rig, size: int) -> Any:
  return torch.randn(size, 3, rig.image, rig.image, device=DEVICE, dtype=_dtype(rig))


def _frozen_vit(sizes: Sizes, rig: Rig) -> Any:
  timm.layers.set_fused_attn(rig.attention != 'eager')
  with torch.device(DEVICE):
    vit = timm.models.VisionTransformer(
      img_size=rig.image,
      patch_size=PATCH,
      embed_dim=sizes.width,
      depth=sizes.depth,
      num_heads=sizes.heads,
      mlp_ratio=sizes.hidden / sizes.width,
      num_classes=0,
    )
  return vit.eval().requires_grad_(False).to(_dtype(rig))


def _linear(d_in: int, d_out: int) -> Any:
  return torch.nn.Linear(d_in, d_out, device=DEVICE)


def _training(rig: Rig, parameters: Iterable[Any], loss: Callable[[], Any]) -> Contest:
  optimizer = torch.optim.Adam(list(parameters), lr=1e-3, fused=DEVICE == 'cuda')
  loss = torch.compile(loss) if rig.compiled else loss

  def update() -> None:
    optimizer.zero_grad(set_to_none=True)
    with _autocast(rig):
      value = loss()
    value.backward()
    optimizer.step()

  return Contest(update)


def _entropy(size: int) -> Callable[[Any], Any]:
  """Over the classes of the first task."""
  labels = torch.arange(size, device=DEVICE) % 10
  other = torch.arange(CLASSES, device=DEVICE) >= 10
  return lambda logits: functional.cross_entropy(
    logits.float().masked_fill(other, -math.inf), labels
  )


def features(rig: Rig) -> Contest:
  """timm's pooled features."""
  vit, images = _frozen_vit(rig.vit, rig), _images(rig, rig.batch)
  vit = torch.compile(vit) if rig.compiled else vit

  def run() -> None:
    with torch.inference_mode():
      vit(images)

  return Contest(run)


def probe(rig: Rig) -> Contest:
  """A linear head on them, which is what peers do at every step."""
  vit, head = _frozen_vit(rig.vit, rig), _linear(rig.vit.width, CLASSES)
  images, entropy = _images(rig, rig.batch), _entropy(rig.batch)

  def loss() -> Any:
    with torch.no_grad():
      x = vit(images)
    return entropy(head(x))

  return _training(rig, head.parameters(), loss)


def lora(rig: Rig) -> Contest:
  """transformers' ViT under peft's LoRA."""
  sizes = rig.vit
  config = transformers.ViTConfig(
    image_size=rig.image,
    patch_size=PATCH,
    hidden_size=sizes.width,
    num_hidden_layers=sizes.depth,
    num_attention_heads=sizes.heads,
    intermediate_size=sizes.hidden,
    attn_implementation='eager' if rig.attention == 'eager' else 'sdpa',
  )
  with torch.device(DEVICE):
    vit = transformers.ViTModel(config, add_pooling_layer=False).to(_dtype(rig))
  targets = r'.*\.(query|value|q_proj|v_proj)'  # Older and newer names.
  model, trained = _low_rank(vit, targets, rank=8, alpha=16)
  assert len(trained) == 2 * 2 * sizes.depth
  head, images, entropy = (
    _linear(sizes.width, CLASSES),
    _images(rig, rig.batch),
    _entropy(rig.batch),
  )
  loss = lambda: entropy(head(model(pixel_values=images).last_hidden_state[:, 0]))
  return _training(rig, [*trained, *head.parameters()], loss)


def _low_rank(model: Any, targets: Any, *, rank: int, alpha: float, dropout: float = 0.0) -> Any:
  """A model under peft's LoRA, and what is trained of it, in float32."""
  settings = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
  model = peft.get_peft_model(model, settings).to(DEVICE)
  return model, [p for p in model.parameters() if p.requires_grad]


def l2p(rig: Rig) -> Contest:
  """L2P as published, with a choice of prompts for each example."""
  vit, width = _frozen_vit(rig.vit, rig), rig.vit.width
  head, images, entropy = _linear(width, CLASSES), _images(rig, rig.batch), _entropy(rig.batch)
  pool, length, top_k, pull = 10, 10, 4, 1.0
  drawn = lambda *shape: torch.nn.Parameter(torch.rand(*shape, device=DEVICE) * 0.01)
  prompts, keys = drawn(pool, length, width), drawn(pool, width)

  def loss() -> Any:
    with torch.no_grad():
      query = functional.normalize(vit(images).float(), dim=-1)
    near, chosen = (query @ functional.normalize(keys, dim=-1).T).topk(top_k)
    x = vit._pos_embed(vit.patch_embed(images))
    x = torch.cat([prompts[chosen].flatten(1, 2).to(x.dtype), x], 1)
    x = vit.norm(vit.blocks(x))[:, : top_k * length].mean(1)
    return entropy(head(x)) + pull * (1 - near).sum(1).mean()

  return _training(rig, [prompts, keys, *head.parameters()], loss)


def ease(rig: Rig) -> Contest:
  """An adapter beside each MLP."""
  vit, head = _frozen_vit(rig.vit, rig), _linear(rig.vit.width, CLASSES)
  adapters = _adapters(vit, rig.vit.width)
  images, entropy = _images(rig, rig.batch), _entropy(rig.batch)
  loss = lambda: entropy(head(_adapted(vit, adapters, images)))
  return _training(rig, [*adapters.parameters(), *head.parameters()], loss)


def _adapters(vit: Any, width: int) -> Any:
  """A bottleneck for each block."""
  return torch.nn.ModuleList(
    torch.nn.Sequential(_linear(width, ADAPTER), torch.nn.ReLU(), _linear(ADAPTER, width))
    for _ in vit.blocks
  )


def _adapted(vit: Any, adapters: Any, images: Any) -> Any:
  """The class token behind blocks with adapters beside their MLPs."""
  x = vit._pos_embed(vit.patch_embed(images))
  for block, adapter in zip(vit.blocks, adapters, strict=True):
    x = x + block.attn(block.norm1(x))
    x = x + block.mlp(block.norm2(x)) + 0.1 * adapter(x)
  return vit.norm(x)[:, 0]


def subspaces(rig: Rig) -> Contest:
  """EASE's prediction: the whole backbone once for each task's adapters."""
  width, count = rig.subspaces_vit.width, rig.subspaces
  vit, images = _frozen_vit(rig.subspaces_vit, rig), _images(rig, rig.subspaces_batch)
  sets = [_adapters(vit, width) for _ in range(count)]
  prototypes = functional.normalize(torch.randn(count, CLASSES, width, device=DEVICE), dim=-1)
  part = lambda adapters, own: (
    functional.normalize(_adapted(vit, adapters, images).float(), dim=-1) @ own.T
  )
  part = torch.compile(part) if rig.compiled else part

  def predict() -> None:
    with torch.inference_mode(), _autocast(rig):
      sum(part(adapters, own) for adapters, own in zip(sets, prototypes, strict=True))

  return Contest(predict)


def text(rig: Rig, texts: Texts) -> Contest:
  """transformers' Llama under peft's LoRA: a head on the last token, or the next tokens."""
  sizes = texts.sizes
  config = transformers.LlamaConfig(
    vocab_size=sizes.vocabulary,
    hidden_size=sizes.width,
    intermediate_size=sizes.hidden,
    num_hidden_layers=sizes.depth,
    num_attention_heads=sizes.heads,
    num_key_value_heads=sizes.kv_heads,
    max_position_embeddings=texts.length,
    use_cache=False,
    attn_implementation='eager' if rig.attention == 'eager' else 'sdpa',
  )
  kind = transformers.LlamaForCausalLM if texts.next_tokens else transformers.LlamaModel
  torch.set_default_dtype(_dtype(rig))
  with torch.device(DEVICE):
    base = kind(config)
  torch.set_default_dtype(torch.float32)
  names = ['q', 'v', 'k', 'o', 'gate', 'up', 'down'] if texts.everywhere else ['q', 'v']
  targets = [f'{name}_proj' for name in names]
  model, trained = _low_rank(
    base, targets, rank=texts.rank, alpha=texts.alpha, dropout=texts.dropout
  )
  assert len(trained) == 2 * len(targets) * sizes.depth
  ids = torch.randint(0, sizes.vocabulary, (texts.batch, texts.length), device=DEVICE)
  if texts.next_tokens:
    return _training(rig, trained, lambda: model(input_ids=ids, labels=ids).loss)
  head, entropy = _linear(sizes.width, CLASSES), _entropy(texts.batch)
  loss = lambda: entropy(head(model(input_ids=ids).last_hidden_state[:, -1]))
  return _training(rig, [*trained, *head.parameters()], loss)


def ranpac_end(rig: Rig) -> Contest:
  """The choice of a ridge, with a refit for each as the authors do, and the weights."""
  del rig
  h, y = _projected()
  g, q = h.T @ h, h.T @ y
  return Contest(lambda: _solved(h, y, g, q))


def ranpac_task(rig: Rig) -> Contest:
  """From the features of a task to weights."""
  del rig

  def call() -> None:
    h, y = _projected()
    _solved(h, y, h.T @ h, h.T @ y)

  return Contest(call)


def _projected() -> Any:
  """Random features [N, M] and labels [N, C]."""
  labels = torch.randint(0, CLASSES, (EXAMPLES,), device=DEVICE)
  centres = torch.randn(CLASSES, WIDTH, device=DEVICE)
  x = 0.3 * centres[labels] + 0.5 * torch.randn(EXAMPLES, WIDTH, device=DEVICE)
  draw = torch.randn(WIDTH, PROJECTION, device=DEVICE)
  return torch.relu(x @ draw), functional.one_hot(labels, CLASSES).float()


@torch.no_grad()
def _solved(h: Any, y: Any, g: Any, q: Any) -> Any:
  eye, fit = torch.eye(PROJECTION, device=DEVICE), EXAMPLES * 4 // 5
  part, cross = h[:fit].T @ h[:fit], h[:fit].T @ y[:fit]
  errors = []
  for ridge in RIDGES:
    weights = torch.linalg.solve(part + ridge * eye, cross)
    errors.append(functional.mse_loss(h[fit:] @ weights, y[fit:]).item())
  ridge = RIDGES[errors.index(min(filter(math.isfinite, errors)))]
  return torch.linalg.solve(g + ridge * eye, q)


CONTESTS: dict[str, Callable[[Rig], Contest]] = {
  'matmul': matmul,
  'features': features,
  'probe': probe,
  'lora': lora,
  'l2p': l2p,
  'ease': ease,
  'subspaces': subspaces,
  'ranpac': ranpac_task,
  'ranpac_end': ranpac_end,
}


def build(name: str, rig: Rig) -> Contest:
  """The contestant of a contest."""
  return text(rig, rig.texts[name]) if name in rig.texts else CONTESTS[name](rig)
