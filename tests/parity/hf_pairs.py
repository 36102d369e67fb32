"""Tiny models of timm and transformers with random weights, and ours with the same."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones import decoder, load_llama, load_timm, vit
from pecft_jax.typing import Adapted, Backbone, LinearHead, Params, PeftTransform

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')
transformers = pytest.importorskip('transformers')
safetensors = pytest.importorskip('safetensors.torch')

CLASSES, PAD = 7, 36


class Pair(NamedTuple):
  """One model in both libraries.

  Attributes:
    theirs: `() -> model`, made anew.
    ours: the backbone.
    params: its weights.
    x: inputs of ours.
    forward: `(model of theirs) -> logits [B, CLASSES]` of the same inputs.
  """

  theirs: Callable[[], Any]
  ours: Backbone
  params: Params
  x: jax.Array
  forward: Callable[[Any], Any]

  def logits(self, model: Any) -> np.ndarray:
    """Of a model of theirs, without gradients."""
    with torch.no_grad():
      return self.forward(model).numpy()


def vit_pair(folder: Any, depth: int = 3) -> Pair:
  """A ViT of timm, whose weights are written to a folder."""
  torch.manual_seed(0)

  def make():
    return timm.models.VisionTransformer(
      img_size=24, patch_size=6, in_chans=2, embed_dim=20, depth=depth, num_heads=4, mlp_ratio=3,
      num_classes=CLASSES,
    ).eval()  # fmt: skip

  weights = make().state_dict()
  path = folder / 'model.safetensors'
  safetensors.save_file(weights, path)
  ours = vit(
    image_size=24, channels=2, patch=6, width=20, depth=depth, heads=4, mlp_ratio=3.0,
    mean=(0.5,) * 2, std=(0.5,) * 2,
  )  # fmt: skip
  x = np.random.default_rng(0).normal(size=(5, 24, 24, 2)).astype(np.float32)

  def theirs():
    model = make()
    model.load_state_dict(weights)
    return model

  forward = lambda model: model(torch.tensor(x).permute(0, 3, 1, 2))
  return Pair(theirs, ours, load_timm(path, ours).params, jnp.asarray(x), forward)


def llama_pair(folder: Any, depth: int = 3) -> Pair:
  """A Llama of transformers with a classifier, whose weights are written to a folder."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=37, hidden_size=24, intermediate_size=20, num_hidden_layers=depth,
    num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64, rope_theta=100.0,
    rms_norm_eps=1e-3, pad_token_id=PAD, num_labels=CLASSES,
  )  # fmt: skip
  transformers.LlamaForSequenceClassification(config).model.save_pretrained(folder)
  ours = decoder(
    vocabulary=37, width=24, depth=depth, heads=6, kv_heads=2, hidden=20, length=64, eps=1e-3,
    pad=PAD, rope_theta=100.0,
  )  # fmt: skip
  ids = np.random.default_rng(0).integers(0, PAD, (5, 11)).astype(np.int32)
  ids[2, 7:] = PAD

  def theirs():
    model = transformers.LlamaForSequenceClassification(config).eval()
    model.model = transformers.LlamaModel.from_pretrained(folder, config=config)
    model.score = torch.nn.Linear(24, CLASSES)
    return model

  def forward(model):
    mask = torch.tensor(ids != PAD).long()
    return model(input_ids=torch.tensor(ids).long(), attention_mask=mask).logits

  params = load_llama(folder / 'model.safetensors', ours).params
  return Pair(theirs, ours, params, jnp.asarray(ids), forward)


def next_words_pair(pair: Pair) -> tuple[Pair, LinearHead]:
  """A Llama with a language-model head, on texts without padding; its head here.

  Before prompts, transformers cannot tell where a padded text ends.
  """
  ids = jnp.where(pair.x == PAD, 1, pair.x)
  whole = pair.theirs()
  kernel = torch.randn(37, 24, generator=torch.Generator().manual_seed(0))

  def theirs():
    model = transformers.LlamaForCausalLM(whole.config).eval()
    model.model = pair.theirs().model
    model.lm_head.weight = torch.nn.Parameter(kernel.clone())
    return model

  forward = lambda model: model(input_ids=torch.tensor(np.asarray(ids)).long()).logits[:, -1]
  head = LinearHead(jnp.asarray(kernel.numpy().T), jnp.zeros(37))
  return Pair(theirs, pair.ours, pair.params, ids, forward), head


def adapted(ours: Backbone, params: Params, peft: PeftTransform, spread: float = 0.2) -> Adapted:
  """A delta and a head of random numbers."""
  shaken = lambda tree, key: jax.tree.map(
    lambda a, k: a + spread * jax.random.normal(k, a.shape) if a.dtype == jnp.float32 else a,
    tree,
    jax.tree.unflatten(
      jax.tree.structure(tree), list(jax.random.split(key, len(jax.tree.leaves(tree))))
    ),
  )
  delta = shaken(peft.init(jax.random.key(0), ours.sites, params), jax.random.key(1))
  head = shaken(LinearHead(jnp.zeros((ours.width, CLASSES)), jnp.zeros(CLASSES)), jax.random.key(2))
  return Adapted(peft, delta, head)


def our_logits(ours: Backbone, params: Params, found: Adapted, x: jax.Array) -> jax.Array:
  """[B, classes] of an adapter with a head."""
  pooled = ours.apply(params, x, found.delta, peft=found.peft).pooled
  assert found.head is not None
  return pooled @ found.head.kernel + found.head.bias
