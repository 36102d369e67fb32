"""Our decoder against transformers' Llama, and transforms on it against huggingface/peft.

Tolerance 1e-4 in float32: sums of some dozen terms in another order.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from pecft_jax.backbones import cards, decoder, load_llama, read_llama_config, save_llama
from pecft_jax.backbones.families.decoder.rope import Rope
from pecft_jax.peft import (
  LlamaAdapterDelta,
  PTuningDelta,
  at_layers,
  llama_adapter,
  lora,
  p_tuning,
  prompt,
)
from pecft_jax.peft.lowrank.lora import LoraDelta
from pecft_jax.peft.tokens.p_tuning import Layer
from pecft_jax.peft.tokens.prompt import PromptDelta
from pecft_jax.typing import PeftTransform

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
hf = pytest.importorskip('peft')

ATOL = 1e-4
PAD = 36
# Of the two frequencies of a head the second is in the part that is stretched in part.
ROPE = {'theta': 100.0, 'factor': 4.0, 'low': 1.0, 'high': 4.0, 'original': 150}


def llama(rope=None, **sizes):
  scaling = rope and {
    'rope_type': 'llama3',
    'factor': rope['factor'],
    'low_freq_factor': rope['low'],
    'high_freq_factor': rope['high'],
    'original_max_position_embeddings': rope['original'],
  }
  theta = {'rope_theta': rope['theta']} if rope else {}
  return transformers.LlamaConfig(**theta, **sizes, rope_scaling=scaling)


def tiny_config():
  return llama(
    ROPE, vocab_size=37, hidden_size=24, intermediate_size=20, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256,
    rms_norm_eps=1e-3, tie_word_embeddings=False,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pair:
  theirs: object
  ours: object
  params: object
  head: object


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  torch.manual_seed(0)
  theirs = transformers.LlamaForCausalLM(tiny_config()).eval()
  # Norms start at one, and weights so small that attention is even: perturbed, they show.
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  folder = tmp_path_factory.mktemp('llama')
  theirs.save_pretrained(folder, max_shard_size='10KB')
  ours = decoder(
    vocabulary=37, width=24, depth=3, heads=6, kv_heads=2, hidden=20, length=64, eps=1e-3,
    pad=PAD, **{f'rope_{key}': value for key, value in ROPE.items()},
  )  # fmt: skip
  checkpoint = load_llama(folder / 'model.safetensors.index.json', ours)
  return Pair(theirs, ours, checkpoint.params, checkpoint.head)


@pytest.fixture(scope='module')
def ids():
  """[5, 11] token ids: two whole, padded behind, padded before, padded at both ends."""
  ids = np.random.default_rng(0).integers(0, PAD, (5, 11)).astype(np.int32)
  ids[2, 7:] = ids[3, :4] = ids[4, :2] = ids[4, 8:] = PAD
  return ids


def torch_inputs(ids):
  return {'input_ids': torch.tensor(ids).long(), 'attention_mask': torch.tensor(ids != PAD).long()}


def states(pair, ids):
  """Ours after every block, and after the final norm."""
  found = {}

  def record(delta, site, next_fn, *args):
    found[site.path] = out = next_fn(*args)
    return out

  pair.ours.apply(pair.params, ids, {}, peft=PeftTransform(lambda *_: {}, record))
  return [found[name] for name in ('block_0', 'block_1', 'block_2', 'norm')]


def test_states_agree_layer_by_layer(pair, ids):
  with torch.no_grad():
    outputs = []
    hooks = [
      layer.register_forward_hook(lambda *a: outputs.append(a[2]))
      for layer in pair.theirs.model.layers
    ]
    last = pair.theirs.model(**torch_inputs(ids)).last_hidden_state.numpy()
    for hook in hooks:
      hook.remove()
  theirs = [*((out[0] if isinstance(out, tuple) else out).numpy() for out in outputs), last]
  real = ids != PAD
  first = np.sort(real)[:, ::-1]  # Sites see the tokens of a text before its pads.
  for ours, want in zip(states(pair, ids), theirs, strict=True):
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(np.asarray(ours)[first], want[real], atol=ATOL)


def test_features_and_logits_agree(pair, ids):
  whole = ids[:2]
  features = pair.ours.apply(pair.params, whole)
  with torch.no_grad():
    want = pair.theirs(**torch_inputs(whole)).logits.numpy()
  np.testing.assert_allclose(features.tokens @ pair.head['kernel'], want, atol=ATOL)


def test_the_pooled_state_is_that_of_the_last_real_token(pair, ids):
  with torch.no_grad():
    want = pair.theirs.model(**torch_inputs(ids)).last_hidden_state.numpy()
  want = want[np.arange(5), [10, 10, 6, 10, 7]]
  for rows in (None, 1):
    got = pair.ours.apply(pair.params, ids, rows=rows).pooled
    np.testing.assert_allclose(got, want, atol=ATOL)


def test_written_weights_are_read_by_transformers(pair, ids, tmp_path):
  save_llama(tmp_path / 'model.safetensors', pair.ours, pair.params, pair.head)
  again = transformers.LlamaForCausalLM(tiny_config())
  tensors = load_file(tmp_path / 'model.safetensors')
  again.load_state_dict({name: torch.tensor(t) for name, t in tensors.items()}, strict=True)
  with torch.no_grad():
    got, want = (m.eval()(**torch_inputs(ids)).logits.numpy() for m in (again, pair.theirs))
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('name', ['llama_3.2_1b', 'llama_2_7b', 'llama_2_70b'])
def test_cards_have_the_frequencies_of_transformers(name):
  sizes = cards()[name].architecture
  rope = {key[5:]: value for key, value in sizes.items() if key.startswith('rope_')}
  stretched = 'factor' in rope
  plain = {'factor': 1.0, 'low': 1.0, 'high': 4.0, 'original': 8192}
  config = llama(
    rope if stretched else None, hidden_size=sizes['width'], num_attention_heads=sizes['heads'],
    max_position_embeddings=sizes['length'],
  )  # fmt: skip
  want = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq.numpy()
  got = Rope(**{**plain, **rope}).frequencies(sizes['width'] // sizes['heads'])
  np.testing.assert_allclose(got, want, rtol=1e-5)


def perturbed(model):
  """A model of huggingface/peft with every weight of its adapter drawn at random."""
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.add_(0.3 * torch.randn_like(parameter))
  return model.eval()


@pytest.fixture
def copy(pair):
  torch.manual_seed(1)
  fresh = transformers.LlamaForCausalLM(tiny_config())
  fresh.load_state_dict(pair.theirs.state_dict())
  return fresh


def test_lora_agrees_in_outputs_and_gradients(pair, ids, copy):
  config = hf.LoraConfig(r=3, lora_alpha=5.0, target_modules=['q_proj', 'v_proj'])
  theirs = perturbed(hf.get_peft_model(copy, config))
  weights = dict(theirs.named_parameters())
  delta = {
    f'block_{i}/attn/{ours}': LoraDelta(*(jnp.asarray(
      weights[f'base_model.model.model.layers.{i}.self_attn.{ours}_proj.lora_{part}.default.weight']
      .detach().numpy().T) for part in 'AB'))
    for i in range(3) for ours in 'qv'
  }  # fmt: skip
  peft = lora(rank=3, alpha=5.0)
  start = peft.init(jax.random.key(0), pair.ours.sites, pair.params)
  assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, delta)

  body = theirs.base_model.model.model
  last = torch.tensor([10, 10, 6, 10, 7])
  pooled = body(**torch_inputs(ids)).last_hidden_state[torch.arange(5), last]
  (pooled**2).mean().backward()
  apply = lambda delta: pair.ours.apply(pair.params, ids, delta, peft=peft, rows=1).pooled
  np.testing.assert_allclose(apply(delta), pooled.detach().numpy(), atol=ATOL)
  assert np.abs(apply(delta) - apply(start)).max() > 0.1
  grads = jax.grad(lambda delta: (apply(delta) ** 2).mean())(delta)
  name = 'base_model.model.model.layers.1.self_attn.{}_proj.lora_{}.default.weight'
  for ours in 'qv':
    for part in 'ab':
      got = getattr(grads[f'block_1/attn/{ours}'], part)
      want = weights[name.format(ours, part.upper())].grad.numpy().T
      assert np.abs(want).max() > 1e-3
      np.testing.assert_allclose(got, want, atol=ATOL)


def test_prompt_tuning_agrees(pair, ids, copy):
  config = hf.PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=4)
  theirs = perturbed(hf.get_peft_model(copy, config))
  learned = theirs.prompt_encoder['default'].embedding.weight
  delta = {'encoder': PromptDelta(jnp.asarray(learned.detach().numpy()))}
  whole = ids[:2]
  with torch.no_grad():
    want = theirs(**torch_inputs(whole)).logits.numpy()[:, 4:]
  features = pair.ours.apply(pair.params, whole, delta, peft=prompt(length=4))
  np.testing.assert_allclose(features.tokens @ pair.head['kernel'], want, atol=ATOL)


def test_p_tuning_agrees_in_outputs_and_gradients(pair, ids, copy):
  config = hf.PromptEncoderConfig(
    task_type='CAUSAL_LM', num_virtual_tokens=4, encoder_hidden_size=9
  )
  theirs = perturbed(hf.get_peft_model(copy, config))
  encoder = theirs.prompt_encoder['default']
  array = lambda tensor: jnp.asarray(tensor.detach().numpy())
  layers = [encoder.mlp_head[at] for at in (0, 2, 4)]
  leaf = PTuningDelta(
    array(encoder.embedding.weight),
    *(Layer(array(each.weight).T, array(each.bias)) for each in layers),
  )
  whole, peft = ids[:2], p_tuning(length=4, hidden=9)
  start = peft.init(jax.random.key(0), pair.ours.sites, pair.params)['encoder']
  assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, leaf)
  want = theirs(**torch_inputs(whole)).logits[:, 4:]

  def logits(leaf):
    features = pair.ours.apply(pair.params, whole, {'encoder': leaf}, peft=peft)
    return features.tokens @ pair.head['kernel']

  np.testing.assert_allclose(logits(leaf), want.detach().numpy(), atol=ATOL)
  want.square().mean().backward()
  grads = jax.grad(lambda leaf: jnp.square(logits(leaf)).mean())(leaf)
  np.testing.assert_allclose(grads.embeddings, encoder.embedding.weight.grad.numpy(), atol=ATOL)
  for grad, layer in zip(grads[1:], layers, strict=True):
    np.testing.assert_allclose(grad.kernel, layer.weight.grad.numpy().T, atol=ATOL)
    np.testing.assert_allclose(grad.bias, layer.bias.grad.numpy(), atol=ATOL)


def test_llama_adapter_agrees(pair, ids, copy):
  """Their prompts through their projections are our keys and values."""
  theirs = perturbed(
    hf.get_peft_model(
      copy, hf.AdaptionPromptConfig(task_type='CAUSAL_LM', adapter_len=4, adapter_layers=2)
    )
  )
  delta = {}
  for i in (1, 2):
    layer = theirs.get_submodule(f'base_model.model.model.layers.{i}.self_attn')
    project = lambda own, prompt=layer.adaption_prompt: jnp.asarray(
      own(prompt).detach().numpy().reshape(4, 2, 4)
    )
    delta[f'block_{i}/attn'] = LlamaAdapterDelta(
      project(layer.model.k_proj),
      project(layer.model.v_proj),
      jnp.asarray(layer.adaption_gate.detach().numpy()),
    )
  peft = at_layers(llama_adapter(length=4), [1, 2])
  start = peft.init(jax.random.key(0), pair.ours.sites, pair.params)
  assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, delta)
  whole = ids[:2]
  with torch.no_grad():
    want = theirs(**torch_inputs(whole)).logits.numpy()
  apply = lambda delta: pair.ours.apply(pair.params, whole, delta, peft=peft).tokens
  assert np.abs(apply(delta) - apply(start)).max() > 0.01
  np.testing.assert_allclose(apply(delta) @ pair.head['kernel'], want, atol=ATOL)


def test_one_step_of_adamw_agrees(pair, ids, copy):
  """Every weight of the first block and the embedding, with a loss on the last real token."""
  labels = np.array([0, 3, 6, 2, 2])

  def loss(params):
    logits = pair.ours.apply(params, ids).pooled @ pair.head['kernel']
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

  tx = optax.adamw(1e-2, weight_decay=0.1)
  grads = jax.jit(jax.grad(loss))(pair.params)
  updates, _ = tx.update(grads, tx.init(pair.params), pair.params)
  new = optax.apply_updates(pair.params, updates)

  optimizer = torch.optim.AdamW(copy.model.parameters(), lr=1e-2, weight_decay=0.1)
  logits = copy(**torch_inputs(ids)).logits[torch.arange(5), torch.tensor([10, 10, 6, 10, 7])]
  torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
  body = copy.model
  found = {
    ('block_0', 'mlp', 'down', 'kernel'): body.layers[0].mlp.down_proj.weight,
    ('block_0', 'attn', 'k', 'kernel'): body.layers[0].self_attn.k_proj.weight,
    ('block_0', 'ln1', 'scale'): body.layers[0].input_layernorm.weight,
    ('embed', 'table'): body.embed_tokens.weight,
  }
  # Adam divides by the size of the gradient: where that is rounding, so is the step's sign.
  sure = {path: weight.grad.abs().numpy() > 1e-4 for path, weight in found.items()}
  optimizer.step()
  for path, weight in found.items():
    got, want, here = new, weight.detach().numpy(), sure[path]
    for key in path:
      got = got[key]
    got = np.asarray(got).T if path[-1] == 'kernel' else np.asarray(got)
    assert here.mean() > 0.3
    np.testing.assert_allclose(got[here], want[here], atol=ATOL)


def test_their_configurations_give_our_decoder_or_are_refused_by_name(tmp_path):
  tiny_config().save_pretrained(tmp_path)
  found = read_llama_config(tmp_path)
  assert (found['rope_factor'], found['heads'], found['length']) == (4.0, 6, 256)
  transformers.LlamaConfig().save_pretrained(tmp_path)
  assert read_llama_config(tmp_path)['width'] == 4096
  transformers.MistralConfig().save_pretrained(tmp_path)
  assert read_llama_config(tmp_path)['length'] == 4096
  for config in (transformers.GemmaConfig(), transformers.Qwen2Config()):
    config.save_pretrained(tmp_path)
    with pytest.raises(
      ValueError, match=rf'model_type of llama or mistral, got .{config.model_type}'
    ):
      read_llama_config(tmp_path)


def test_weights_of_gemma_are_no_llama(tmp_path):
  sizes = dict(vocab_size=37, hidden_size=24, intermediate_size=20, num_hidden_layers=1,
               num_attention_heads=6, num_key_value_heads=2, head_dim=4)  # fmt: skip
  transformers.GemmaForCausalLM(transformers.GemmaConfig(**sizes)).save_pretrained(tmp_path)
  ours = decoder(vocabulary=37, width=24, depth=1, heads=6, kv_heads=2, hidden=20, length=8)
  with pytest.raises(ValueError, match="got 'gemma'"):
    load_llama(tmp_path / 'model.safetensors', ours)


def test_a_mistral_is_our_decoder_up_to_its_window(tmp_path):
  torch.manual_seed(0)
  sizes = dict(vocab_size=37, hidden_size=24, intermediate_size=20, num_hidden_layers=1,
               num_attention_heads=6, num_key_value_heads=2, head_dim=4,
               sliding_window=8)  # fmt: skip
  theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**sizes)).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  theirs.save_pretrained(tmp_path)
  ours = decoder(**read_llama_config(tmp_path))
  params = load_llama(tmp_path / 'model.safetensors', ours).params
  texts = np.random.default_rng(0).integers(0, 37, (3, 8)).astype(np.int32)
  with torch.no_grad():
    want = theirs.model(torch.tensor(texts).long()).last_hidden_state.numpy()
  np.testing.assert_allclose(ours.apply(params, texts).tokens, want, atol=ATOL)
