"""Adapters that we write, in huggingface/peft on models of timm and transformers; and theirs here.

Tolerance 1e-4 in float32: sums of some hundred terms in another order.
"""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_pairs import PAD, adapted, llama_pair, next_words_pair, our_logits, vit_pair

from pecft_jax.interop import load_hf_peft, save_hf_peft
from pecft_jax.interop.hf_types import REFUSED, TYPES
from pecft_jax.peft import (
  adalora,
  at_layers,
  boft,
  c3a,
  chain,
  combine,
  delora,
  dora,
  fourierft,
  hira,
  hra,
  ia3,
  krona,
  llama_adapter,
  ln_tuning,
  loha,
  lokr,
  lora,
  lora_fa,
  lora_xs,
  miss,
  oft,
  osf,
  p_tuning,
  pissa,
  prefix,
  prefix_mlp,
  prompt_tuning,
  randlora,
  rslora,
  select_weights,
  shira,
  split_kept,
  trainable_tokens,
  vera,
)
from pecft_jax.typing import LinearHead

torch = pytest.importorskip('torch')
hf = pytest.importorskip('peft')

ATOL = 1e-4


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """timm's model without adapters, ours with the same weights, and inputs for either."""
  pair = vit_pair(tmp_path_factory.mktemp('timm'))
  return *pair[:4], pair.logits


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  return llama_pair(tmp_path_factory.mktemp('llama'))


@pytest.fixture(scope='module')
def texts(llama):
  """The same of a Llama."""
  return *llama[:4], llama.logits


VIT = {
  'lora on q and v': lora(r'attn/(q|v)$', 2, alpha=5.0),
  'lora everywhere': lora(r'attn|mlp', 3),
  'rslora on k': rslora(r'attn/k$', 4, alpha=3.0),
  'at one layer': at_layers(lora(r'mlp/fc1', 2), [1]),
  'two of different ranks and scales': chain(
    deep=at_layers(lora(r'attn/(q|out)', 3, alpha=1.0), [2]), wide=lora(r'attn/q|mlp/fc2', 2, 7.0)
  ),
  'lora with patterns': lora(
    r'attn/out|mlp', 2, alpha=5.0, ranks={'block_1': 3}, alphas={'fc2': 7.0, 'block_2': 1.0}
  ),
  'dora on q and v': dora(r'attn/(q|v)$', 2, alpha=5.0),
  'dora on whole layers': dora(r'out|fc', 3),
  'pissa': pissa(r'attn/(k|out)$', 2),
  'ia3': ia3(),
  'ia3 of mlps': ia3(outputs='fc1', inputs='fc2'),
  'lora_xs': lora_xs(r'attn/(k|out)$', 2),
  'adalora': adalora(r'attn/(q|v)$|fc1', 3, 2, alpha=5.0),
  'vera': vera(r'attn/(q|v)$', 5),
  'vera everywhere': vera(r'attn|mlp', 5, seed=3, fan_in=60),
  'hira': hira(r'attn/(q|v)$|fc1', 3),
  'miss': miss(r'attn/(q|v)$|fc2', 3),
  'ln_tuning': ln_tuning(),
  'loha': loha(r'attn/(q|v)$|fc2', 2, alpha=3.0),
  'lokr': lokr('fc|out', 2, alpha=3.0),
  'krona': krona('fc|out', scale=0.5),
  'lokr of two products': lokr('fc|out', 1, factor=10, decompose_both=True),
  'oft': oft('fc|out', 4),
  'oft, exact and shared': oft('fc|out', 5, terms=None, shared=True),
  'boft': boft('fc|out', 4),
  'hra': hra('fc|out', 4),
  'c3a': c3a(r'attn/(q|v)$|out', 5),
  'fourierft': fourierft('fc|out', 40, seed=5),
  'lora_fa': lora_fa(r'attn/(q|v)$', 2),
  'delora': delora('fc|out', 3),
  'randlora': randlora('fc|out', 7, 10.0, seed=3),
  'shira': shira('fc|out', 2),
  'one norm': select_weights(r'block_1/ln2/scale'),
}
LLAMA = {
  'lora on q and v': lora(r'attn/(q|v)$', 2, alpha=5.0),
  'lora everywhere': rslora(r'attn|mlp', 3),
  'dora': dora(r'attn/(k|out)$', 2),
  'ia3': ia3(),
  'adalora': adalora(r'attn/(q|v)$|down', 3, 2, alpha=5.0),
  'vera': vera(r'attn|mlp', 5, fan_in=24),
  'hira': hira(r'attn/(q|v)$|up', 3),
  'miss': miss(r'attn/(q|v)$|up', 3),
  'ln_tuning': ln_tuning(),
  'loha': loha(rank=2),
  'delora': delora(rank=2),
  'randlora': randlora(rank=5, alpha=10.0),
  'shira': shira(rank=2),
  'lokr': lokr(rank=2),
  'oft': oft(block=4),
  'boft': boft(r'attn/(k|v)$', block=4),
  'hra': hra(rank=4),
  'c3a': c3a(block=4),
  'fourierft': fourierft(count=30),
  'trainable_tokens': trainable_tokens((30, 4, 7, 11)),
}
CASES = [('images', name) for name in VIT] + [('texts', name) for name in LLAMA]


@pytest.fixture(params=CASES, ids=lambda case: f'{case[0]}, {case[1]}')
def saved(request, tmp_path):
  kind, name = request.param
  theirs, ours, params, x, logits = request.getfixturevalue(kind)
  found = adapted(ours, params, {'images': VIT, 'texts': LLAMA}[kind][name])
  save_hf_peft(tmp_path / 'adapter', ours, found, params)
  return tmp_path / 'adapter', theirs, ours, params, x, logits, found


def test_their_library_computes_the_same_with_what_we_write(saved):
  directory, theirs, ours, params, x, logits, found = saved
  plain = logits(theirs())
  model = hf.PeftModel.from_pretrained(theirs(), directory).eval()
  want = our_logits(ours, params, found, x)
  assert np.abs(plain - want).max() > 0.1
  np.testing.assert_allclose(logits(model), want, atol=ATOL)


def test_what_we_write_comes_back(saved):
  directory, _, ours, params, x, _, found = saved
  back = load_hf_peft(directory, ours)
  np.testing.assert_allclose(
    our_logits(ours, params, back, x), our_logits(ours, params, found, x), atol=ATOL
  )
  # It may be trained further: the same tree as one of its own transform.
  own = back.peft.init(jax.random.key(0), ours.sites, params)
  chex.assert_trees_all_equal_structs(own, back.delta)


@pytest.mark.parametrize('kind', ['images', 'texts'])
def test_parts_of_weights_mean_the_same_there(kind, request, tmp_path):
  theirs, ours, params, x, logits = request.getfixturevalue(kind)
  peft = chain(half=osf('out$'), most=at_layers(osf('fc1|up', 15), [1]))
  found = adapted(ours, params, peft)
  fresh = peft.init(jax.random.key(0), ours.sites, params)
  found = found._replace(delta=combine(split_kept(found.delta)[0], split_kept(fresh)[1]))
  save_hf_peft(tmp_path, ours, found, params)
  model = hf.PeftModel.from_pretrained(theirs(), tmp_path).eval()
  want = our_logits(ours, params, found, x)
  assert np.abs(logits(theirs()) - want).max() > 0.1
  np.testing.assert_allclose(logits(model), want, atol=ATOL)
  model.save_pretrained(tmp_path / 'theirs')
  back = load_hf_peft(tmp_path / 'theirs', ours, params=params)._replace(head=found.head)
  np.testing.assert_allclose(our_logits(ours, params, back, x), want, atol=ATOL)


@pytest.fixture(scope='module')
def whole_texts(texts):
  """Without padding: before prompts, transformers cannot tell where a padded text ends."""
  theirs, ours, params, x, _ = texts
  ids = jnp.where(x == PAD, 1, x)

  def logits(model):
    with torch.no_grad():
      return model(input_ids=torch.tensor(np.asarray(ids)).long()).logits.numpy()

  return theirs, ours, params, ids, logits


@pytest.fixture(scope='module')
def next_words(llama):
  """The same with a language-model head, whose predictions of the next word are compared."""
  pair, head = next_words_pair(llama)
  return *pair[:4], pair.logits, head


def test_their_library_computes_the_same_with_a_prompt_that_we_write(whole_texts, tmp_path):
  theirs, ours, params, x, logits = whole_texts
  found = adapted(ours, params, prompt_tuning(4))
  save_hf_peft(tmp_path / 'adapter', ours, found, params)
  model = hf.PeftModel.from_pretrained(theirs(), tmp_path / 'adapter').eval()
  want = our_logits(ours, params, found, x)
  assert np.abs(logits(theirs()) - want).max() > 0.1
  np.testing.assert_allclose(logits(model), want, atol=ATOL)


@pytest.mark.parametrize(
  'peft', [prompt_tuning(4), p_tuning(4), prefix(length=4), prefix_mlp(length=4, hidden=8)]
)
def test_their_library_predicts_the_same_words(peft, next_words, tmp_path):
  theirs, ours, params, x, logits, head = next_words
  found = adapted(ours, params, peft)._replace(head=None)
  save_hf_peft(tmp_path / 'adapter', ours, found, params)
  model = hf.PeftModel.from_pretrained(theirs(), tmp_path / 'adapter').eval()
  want = our_logits(ours, params, found._replace(head=head), x)
  assert np.abs(logits(theirs()) - want).max() > 0.1
  np.testing.assert_allclose(logits(model), want, atol=ATOL)
  back = load_hf_peft(tmp_path / 'adapter', ours)._replace(head=head)
  np.testing.assert_allclose(our_logits(ours, params, back, x), want, atol=ATOL)


THEIR_PROMPTS = {
  'prompt': dict(cls='PromptTuningConfig'),
  'encoder': dict(cls='PromptEncoderConfig', encoder_hidden_size=8),
  'prefix': dict(cls='PrefixTuningConfig'),
  'prefix with an mlp': dict(
    cls='PrefixTuningConfig', prefix_projection=True, encoder_hidden_size=8
  ),
  'cartridge': dict(cls='CartridgeConfig'),
  'cpt': dict(cls='CPTConfig', cpt_token_ids=[3, 1, 4]),
}  # fmt: skip


@pytest.mark.parametrize('case', THEIR_PROMPTS)
def test_we_predict_the_same_words_with_what_they_write(case, next_words, tmp_path):
  theirs, ours, params, x, logits, head = next_words
  options = dict(THEIR_PROMPTS[case])
  config = getattr(hf, options.pop('cls'))(num_virtual_tokens=3, task_type='CAUSAL_LM', **options)
  model = hf.get_peft_model(theirs(), config).eval()
  model.save_pretrained(tmp_path)
  found = load_hf_peft(tmp_path, ours)._replace(head=head)
  np.testing.assert_allclose(our_logits(ours, params, found, x), logits(model), atol=ATOL)


ADAPTER = at_layers(llama_adapter(length=3), [1, 2])


def test_prompts_beside_attention_are_the_same_in_both_libraries(next_words, tmp_path):
  theirs, ours, params, x, logits, head = next_words
  found = adapted(ours, params, ADAPTER)._replace(head=None)
  save_hf_peft(tmp_path / 'ours', ours, found, params)
  model = hf.PeftModel.from_pretrained(theirs(), tmp_path / 'ours').eval()
  want = our_logits(ours, params, found._replace(head=head), x)
  assert np.abs(logits(theirs()) - want).max() > 0.01
  np.testing.assert_allclose(logits(model), want, atol=ATOL)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'adaption' in name:
        parameter.add_(0.5 * torch.randn_like(parameter))
  model.save_pretrained(tmp_path / 'theirs')
  back = load_hf_peft(tmp_path / 'theirs', ours, params=params)._replace(head=head)
  assert np.abs(logits(model) - want).max() > 0.01
  np.testing.assert_allclose(our_logits(ours, params, back, x), logits(model), atol=ATOL)


THEIRS = {
  'lora': dict(cls='LoraConfig', r=2, lora_alpha=5, target_modules=['qkv', 'fc1']),
  'rslora with patterns': dict(
    cls='LoraConfig', r=2, lora_alpha=5, target_modules=['proj', 'fc2'], use_rslora=True,
    exclude_modules=['patch_embed.proj'], rank_pattern={'blocks.1.mlp.fc2': 3},
    alpha_pattern={'attn.proj': 9},
  ),
  'dora': dict(cls='LoraConfig', r=2, target_modules=['qkv'], use_dora=True),
  'dora with rslora': dict(
    cls='LoraConfig', r=4, target_modules=['fc1'], use_dora=True, use_rslora=True
  ),
  'random factors': dict(cls='LoraConfig', target_modules=['fc1'], init_lora_weights=False),
  'gaussian': dict(cls='LoraConfig', target_modules=['fc1'], init_lora_weights='gaussian'),
  'orthogonal': dict(cls='LoraConfig', target_modules=['qkv'], init_lora_weights='orthogonal'),
  'mica': dict(cls='LoraConfig', r=4, target_modules=['fc1'], init_lora_weights='mica'),
  'patterns with expressions': dict(
    cls='LoraConfig', target_modules=['qkv', 'fc1', 'fc2'], r=2,
    rank_pattern={r'^blocks\.[02]\.mlp\.fc1': 3, 'fc': 7},
    alpha_pattern={r'[12]\.mlp\.fc\d': 5, '^mlp.fc1': 99, 'lp.fc2': 99, 'attn.(qkv|proj)': 3},
  ),
  'a negative alpha': dict(cls='LoraConfig', lora_alpha=-4, target_modules=['fc1']),
  'adalora': dict(
    cls='AdaLoraConfig', init_r=4, target_r=2, lora_alpha=5, total_step=9, tfinal=2,
    target_modules=['qkv', 'fc1'],
  ),
  'vera': dict(cls='VeraConfig', r=4, target_modules=['qkv', 'fc1']),
  'hira': dict(cls='HiraConfig', r=3, target_modules=['qkv', 'fc1'], rank_pattern={'fc1': 2}),
  'miss': dict(cls='MissConfig', r=4, target_modules=['qkv', 'fc1']),
  'loha': dict(
    cls='LoHaConfig', r=2, alpha=3, target_modules=['qkv', 'fc1'], rank_pattern={'fc1': 3},
    alpha_pattern={'qkv': 5},
  ),
  'lokr': dict(
    cls='LoKrConfig', r=2, alpha=3, target_modules=['fc1', 'fc2'], alpha_pattern={'fc1': 5},
  ),
  'lokr of two products': dict(
    cls='LoKrConfig', r=1, target_modules=['fc1', 'fc2'], decompose_both=True, decompose_factor=10
  ),
  'oft': dict(cls='OFTConfig', oft_block_size=4, target_modules=['qkv', 'fc1']),
  'oft, exact': dict(
    cls='OFTConfig', oft_block_size=5, target_modules=['qkv', 'fc1'], use_cayley_neumann=False,
    block_share=True,
  ),
  'boft': dict(cls='BOFTConfig', boft_block_size=4, target_modules=['qkv', 'fc1']),
  'hra': dict(cls='HRAConfig', r=4, target_modules=['qkv', 'fc1']),
  'c3a': dict(cls='C3AConfig', block_size=5, target_modules=['qkv', 'fc1']),
  'fourierft': dict(cls='FourierFTConfig', n_frequency=30, target_modules=['fc1', 'fc2']),
  'delora': dict(cls='DeloraConfig', r=3, target_modules=['fc1', 'fc2']),
  'randlora': dict(
    cls='RandLoraConfig', r=6, randlora_alpha=6, target_modules=['fc1', 'fc2']
  ),
  'shira': dict(cls='ShiraConfig', r=2, target_modules=['fc1', 'fc2']),
  'ln_tuning': dict(cls='LNTuningConfig', target_modules=['norm1', 'norm2']),
  'ia3': dict(cls='IA3Config', target_modules=['qkv', 'fc2'], feedforward_modules=['fc2']),
}  # fmt: skip


@pytest.mark.parametrize('case', THEIRS)
def test_we_compute_the_same_with_what_they_write(case, images, tmp_path):
  theirs, ours, params, x, logits = images
  options = dict(THEIRS[case])
  config = getattr(hf, options.pop('cls'))(**options, modules_to_save=['head'])
  model = hf.get_peft_model(theirs(), config).eval()
  torch.manual_seed(1)
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.add_(0.2 * torch.randn_like(parameter))
  model.save_pretrained(tmp_path)
  found = load_hf_peft(tmp_path, ours)
  assert np.abs(logits(model) - logits(theirs())).max() > 0.1
  np.testing.assert_allclose(our_logits(ours, params, found, x), logits(model), atol=ATOL)


def test_we_compute_the_same_with_tokens_that_they_write(texts, tmp_path):
  theirs, ours, params, x, logits = texts
  config = hf.TrainableTokensConfig(token_indices=[9, 3, 20])
  model = hf.get_peft_model(theirs(), config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.add_(0.5 * torch.randn_like(parameter))
  model.save_pretrained(tmp_path)
  score = model.base_model.model.score
  head = LinearHead(*(jnp.asarray(a.detach().numpy().T) for a in (score.weight, score.bias)))
  found = load_hf_peft(tmp_path, ours)._replace(head=head)
  assert found.delta['embed/table'].index.value.tolist() == [9, 3, 20]
  np.testing.assert_allclose(our_logits(ours, params, found, x), logits(model), atol=ATOL)


@pytest.mark.parametrize('init', ['pissa', 'pissa_niter_4', 'olora'])
def test_inits_that_change_the_base_are_refused_by_name(init, images, tmp_path):
  theirs, ours, *_ = images
  config = hf.LoraConfig(r=2, target_modules=['fc1'], init_lora_weights=init)
  hf.get_peft_model(theirs(), config).save_pretrained(tmp_path)
  with pytest.raises(ValueError, match=f'adapter_config.json: init_lora_weights={init!r}'):
    load_hf_peft(tmp_path, ours)


@pytest.mark.parametrize('kind', TYPES)
def test_every_option_of_the_installed_library_is_sorted(kind):
  cls = hf.PEFT_TYPE_TO_CONFIG_MAPPING[hf.PeftType(kind)]
  assert {field.name for field in dataclasses.fields(cls)} <= TYPES[kind].keys.known()


def test_types_that_are_refused_are_types_of_the_installed_library():
  assert set(REFUSED) <= {kind.value for kind in hf.PeftType}


def test_short_names_are_written_where_they_mean_the_same_layers(images, texts, tmp_path):
  names = {}
  for kind, peft in (
    ('texts', lora(r'attn/(q|v)$')),
    ('images', lora(r'attn/(q|v)$')),
    ('patch too', lora('attn/out')),
  ):
    _, ours, params, _, _ = texts if kind == 'texts' else images
    save_hf_peft(tmp_path / kind, ours, adapted(ours, params, peft), params)
    config = json.loads((tmp_path / kind / 'adapter_config.json').read_text())
    names[kind] = config['target_modules']
  assert names['texts'] == ['q_proj', 'v_proj']
  assert names['images'] == ['qkv']
  # timm's patch embedding ends with the same name.
  assert names['patch too'] == [f'blocks.{i}.attn.proj' for i in range(3)]
