"""Our ViT against timm's: embeddings, first block, model, then one optimizer step.

Tolerance 1e-4 in float32: sums of some hundred terms in another order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pecft_jax.backbones import load_timm, vit
from pecft_jax.backbones.core.taps import tap_of
from pecft_jax.backbones.families.vit.model import Block, Embed
from pecft_jax.peft import adaptformer

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')
safetensors = pytest.importorskip('safetensors.torch')

ATOL = 1e-4
NO_TAP = tap_of(None, {})


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  torch.manual_seed(0)
  theirs = timm.models.VisionTransformer(
    img_size=24, patch_size=6, in_chans=2, embed_dim=20, depth=3, num_heads=4, mlp_ratio=3,
    num_classes=7,
  ).eval()  # fmt: skip
  # timm starts biases at zero and norms at one: perturbed, they must be read, too.
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  path = tmp_path_factory.mktemp('timm') / 'model.safetensors'
  safetensors.save_file(theirs.state_dict(), path)
  ours = vit(
    image_size=24, channels=2, patch=6, width=20, depth=3, heads=4, mlp_ratio=3.0,
    mean=(0.5,) * 2, std=(0.5,) * 2,
  )  # fmt: skip
  return theirs, ours, load_timm(path, ours)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).normal(size=(5, 24, 24, 2)).astype(np.float32)


def channels_first(x):
  return torch.tensor(x).permute(0, 3, 1, 2)


def test_embeddings_agree(pair, images):
  theirs, _, checkpoint = pair
  params = {k: checkpoint.params[k] for k in ('patch', 'cls', 'pos')}
  ours = Embed(6, 20, NO_TAP).apply({'params': params}, jnp.asarray(images))
  with torch.no_grad():
    want = theirs._pos_embed(theirs.patch_embed(channels_first(images)))
  np.testing.assert_allclose(ours, want.numpy(), atol=ATOL)


def test_the_first_block_agrees(pair):
  theirs, _, checkpoint = pair
  x = np.random.default_rng(1).normal(size=(3, 17, 20)).astype(np.float32)
  block = Block(4, 60, True, NO_TAP, 'block_0')
  ours = block.apply({'params': checkpoint.params['block_0']}, jnp.asarray(x), None, None)
  with torch.no_grad():
    want = theirs.blocks[0](torch.tensor(x))
  np.testing.assert_allclose(ours, want.numpy(), atol=ATOL)


def test_tokens_and_logits_agree(pair, images):
  theirs, ours, checkpoint = pair
  features = ours.apply(checkpoint.params, jnp.asarray(images))
  with torch.no_grad():
    tokens = theirs.forward_features(channels_first(images)).numpy()
    logits = theirs(channels_first(images)).numpy()
  np.testing.assert_allclose(features.tokens, tokens, atol=ATOL)
  head = checkpoint.head
  np.testing.assert_allclose(features.pooled @ head['kernel'] + head['bias'], logits, atol=ATOL)


def test_one_step_of_adamw_agrees(pair, images):
  theirs, ours, checkpoint = pair
  labels = np.array([0, 3, 6, 2, 2])
  weights = {'body': checkpoint.params, 'head': jax.tree.map(jnp.asarray, checkpoint.head)}

  def loss(w):
    pooled = ours.apply(w['body'], jnp.asarray(images)).pooled
    logits = pooled @ w['head']['kernel'] + w['head']['bias']
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

  tx = optax.adamw(1e-2, weight_decay=0.1)
  updates, _ = tx.update(jax.grad(loss)(weights), tx.init(weights), weights)
  new = optax.apply_updates(weights, updates)

  optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
  before = {k: v.clone() for k, v in theirs.state_dict().items()}
  torch.nn.functional.cross_entropy(theirs(channels_first(images)), torch.tensor(labels)).backward()
  # Adam divides by the size of the gradient: where that is rounding, so is the step's sign.
  sure = theirs.blocks[1].mlp.fc1.weight.grad.abs() > 1e-5
  optimizer.step()
  want = theirs.blocks[1].mlp.fc1.weight.detach().clone()
  got = np.asarray(new['body']['block_1']['mlp']['fc1']['kernel']).T
  theirs.load_state_dict(before)
  assert sure.float().mean() > 0.9
  np.testing.assert_allclose(got[sure.numpy()], want[sure].numpy(), atol=ATOL)


@pytest.mark.parametrize('rows', [None, 1])
@pytest.mark.parametrize('read', ['normed', 'residual'])
def test_parallel_adapters_read_the_stream_before_or_after_the_norm(pair, images, read, rows):
  """Against a timm block with an adapter in the forms of AdaptFormer's code and paper."""
  theirs, ours, checkpoint = pair
  params, peft = checkpoint.params, adaptformer(width=3, scale=0.5, read=read)
  delta = peft.init(jax.random.key(0), ours.sites, params)
  rng = np.random.default_rng(1)
  delta = jax.tree.map(lambda a: a + np.float32(0.3) * rng.normal(size=a.shape), delta)
  with torch.no_grad():
    x = theirs._pos_embed(theirs.patch_embed(channels_first(images)))
    for i, block in enumerate(theirs.blocks):
      leaf = jax.tree.map(lambda a: torch.tensor(np.array(a, np.float32)), delta[f'block_{i}/mlp'])
      x = x + block.attn(block.norm1(x))
      seen = x if read == 'residual' else block.norm2(x)
      hidden = torch.relu(seen @ leaf.down + leaf.down_bias)
      x = x + block.mlp(block.norm2(x)) + 0.5 * (hidden @ leaf.up + leaf.up_bias)
    want = theirs.norm(x)[:, 0]
  got = ours.apply(params, jnp.asarray(images), delta, peft=peft, rows=rows).pooled
  np.testing.assert_allclose(got, want, atol=ATOL)
