"""Every type of adapter, written and read again on tiny models; what has no form is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pecft_jax.backbones import decoder, vit
from pecft_jax.interop import load_hf_peft, save_hf_peft
from pecft_jax.interop.check import check_saved
from pecft_jax.interop.hf_types import REFUSED, TYPES
from pecft_jax.peft import (
  PEFTS,
  adalora,
  at_layers,
  bank,
  boft,
  c3a,
  chain,
  combine,
  corda,
  delora,
  eva,
  fourierft,
  hira,
  hra,
  krona,
  ln_tuning,
  loha,
  lokr,
  lora,
  lora_fa,
  lora_ga,
  lora_xs,
  milora,
  miss,
  oft,
  osf,
  p_tuning,
  pissa,
  prefix,
  prefix_mlp,
  prompt,
  prompt_tuning,
  randlora,
  select_weights,
  shira,
  split_kept,
  trainable_tokens,
  vera,
  vpt_deep,
)
from pecft_jax.typing import Adapted, LinearHead

VIT = vit(
  name='images', image_size=4, channels=1, patch=2, width=8, depth=2, heads=2, mean=(0.5,),
  std=(0.5,),
)  # fmt: skip
TEXTS = decoder(vocabulary=11, width=8, depth=2, heads=4, kv_heads=2, hidden=12, length=6)
MODELS = {model.family: (model, jax.jit(model.init)(jax.random.key(0))) for model in (VIT, TEXTS)}
QV = r'attn/(q|v)$'
LAYERS = r'attn/out$|mlp'


def saved(family, peft, directory):
  """A delta of random numbers, written."""
  model, params = MODELS[family]
  delta = peft.init(jax.random.key(1), model.sites, params)
  rng = np.random.default_rng(0)
  shaken = lambda a: a + 0.2 * rng.normal(size=a.shape) if a.dtype == np.float32 else a
  delta = jax.tree.map(lambda a: jnp.asarray(shaken(np.asarray(a)), a.dtype), delta)
  head = LinearHead(jnp.ones((8, 3)), jnp.arange(3.0))
  adapted = Adapted(peft, delta, head)
  save_hf_peft(directory, model, adapted, params)
  return adapted


BOTH = {
  'lora': lora(QV, 2),
  'lora at all layers': lora(f'{QV}|{LAYERS}', 2),
  'lora of several ranks': lora(LAYERS, 2, 3.0, ranks={'block_1': 3}, alphas={'out': 7.0}),
  'loha': loha(f'{QV}|{LAYERS}', 2, alpha=3.0),
  'hira': hira(f'{QV}|{LAYERS}', 2),
  'miss': miss(f'{QV}|{LAYERS}', 3),
  'c3a': c3a(f'{QV}|out$', 4),
  'vera': vera(f'{QV}|{LAYERS}', 3, seed=5, fan_in=32),
  'vera of one kind': vera(QV, 3),
  'ln_tuning': ln_tuning(),
  'some norms': select_weights(r'block_1/ln1'),
  'lokr': lokr(LAYERS, 2, alpha=3.0),
  'lokr of two products': lokr(LAYERS, 1, factor=4, decompose_both=True),
  'oft': oft(LAYERS, 4),
  'oft, exact': oft(LAYERS, 2, terms=None, shared=True),
  'boft': boft(LAYERS, 2, factors=2),
  'hra': hra(LAYERS, 3),
  'fourierft': fourierft(LAYERS, 9, seed=3),
  'delora': delora(LAYERS, 2),
  'randlora': randlora(LAYERS, 3, seed=4),
  'shira': shira(LAYERS, 1),
}
CASES = [
  *((family, name, peft) for family in MODELS for name, peft in BOTH.items()),
  ('decoder', 'oft of q', oft(r'attn/q$', 4)),
  ('decoder', 'prompt_tuning', prompt_tuning(3)),
  ('decoder', 'trainable_tokens', trainable_tokens((7, 2))),
]


@pytest.mark.parametrize(('family', 'name', 'peft'), CASES, ids=lambda value: str(value)[:30])
def test_it_comes_back_bit_by_bit(family, name, peft, tmp_path):
  adapted = saved(family, peft, tmp_path)
  model, params = MODELS[family]
  if family == 'vit' and name == 'vera':
    params = None  # It is also read without the weights.
  back = load_hf_peft(tmp_path, model, params=params)
  assert jax.tree.structure(back.delta) == jax.tree.structure(adapted.delta)
  for want, got in zip(jax.tree.leaves(adapted[1:]), jax.tree.leaves(back[1:]), strict=True):
    np.testing.assert_array_equal(got, want)
  # It may be trained further, and be written again.
  own = jax.eval_shape(lambda: back.peft.init(jax.random.key(0), model.sites, MODELS[family][1]))
  assert jax.tree.structure(own) == jax.tree.structure(back.delta)


@pytest.mark.parametrize(
  ('family', 'peft'),
  [
    ('vit', pissa(QV, 2)),
    ('vit', lora_xs(QV, 2)),
    ('vit', lora_fa(QV, 2)),
    ('vit', adalora(QV, 3, 2, alpha=5.0)),
    ('decoder', adalora(f'{QV}|down', 3, 2)),
    ('decoder', prefix(length=3)),
    ('decoder', prefix_mlp(length=3, hidden=5)),
    ('decoder', p_tuning(length=3, hidden=5)),
    ('vit', milora('fc1', 2)),
    ('vit', corda('fc1', 2)),
    ('vit', lora_ga('fc1', 2, 3.0)),
    ('vit', krona('fc1|out', factor=4, scale=0.5)),
    ('vit', chain(a=loha(QV, 2, 1.0), b=at_layers(loha('fc1', 3, 7.0), [1]))),
  ],
)
def test_it_comes_back_as_the_same_function(family, peft, tmp_path):
  adapted = saved(family, peft, tmp_path)
  model, params = MODELS[family]
  check_saved(tmp_path, model, adapted, params)
  again = load_hf_peft(tmp_path, model)
  save_hf_peft(tmp_path / 'again', model, again, params)
  check_saved(tmp_path / 'again', model, adapted, params)


@pytest.mark.parametrize(
  ('family', 'peft', 'message'),
  [
    ('vit', lokr(QV, 2), 'blocks.0.attn.qkv is q, k and v in one layer: .* Kronecker'),
    ('vit', oft(QV, 4), 'expected the same at all three'),
    ('vit', fourierft(QV, 4), 'frequencies are of all three'),
    ('vit', delora(QV, 2), 'norms and strength'),
    ('vit', randlora(QV, 2), 'the products are of all three'),
    ('vit', shira(QV, 1), 'entries are chosen of all three'),
    ('vit', prompt_tuning(2), "is for models of text, not timm's"),
    ('vit', prefix(length=2), "is for models of text, not timm's"),
    ('vit', trainable_tokens((0,), 'pos'), "is for models of text, not timm's"),
    ('decoder', bank(trainable_tokens((0,)), 2), 'of a bank, save one slot'),
    ('decoder', vpt_deep(2), r"one prompt, at the input of the model, got prompts at \['block_0"),
    ('decoder', at_layers(prefix(length=2), [1]), 'one prefix at each of'),
    ('decoder', prompt('encoder|block_0$', 2), 'one prompt, at the input'),
    ('vit', select_weights('bias$'), 'got plain arrays of'),
    ('vit', chain(a=lora(QV, 2), b=miss('fc1', 2)), 'no mixture of'),
    ('vit', chain(a=miss(QV, 2), b=miss('fc1', 3)), 'one rank for all layers'),
    ('vit', chain(a=hra('fc1', 2), b=hra('fc1', 2)), 'two Hra adapters act on'),
    ('vit', bank(boft('fc1', 2), 2), 'of a bank, save one slot'),
  ],
  ids=lambda value: str(value)[:30],
)
def test_what_the_format_cannot_say_is_refused(family, peft, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    saved(family, peft, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_parts_of_weights_are_read_beside_the_weights(tmp_path):
  model, params = MODELS['decoder']
  peft = chain(half=osf(r'attn/(q|out)'), one=osf('up', 1))
  trained, kept = split_kept(peft.init(jax.random.key(1), model.sites, params))
  delta = combine(jax.tree.map(lambda a: 1.1 * a + 0.1, trained), kept)
  save_hf_peft(tmp_path, model, Adapted(peft, delta, None), params)
  check_saved(tmp_path, model, Adapted(peft, delta, None), params)
  back = load_hf_peft(tmp_path, model, params=params)
  want = {**delta['half'], **delta['one']}
  assert back.delta.keys() == want.keys()
  jax.tree.map(np.testing.assert_array_equal, back.delta, want)
  assert back.peft.after is None  # There, nothing is put back after an update.
  with pytest.raises(ValueError, match='beside the weights of its base: give params'):
    load_hf_peft(tmp_path, model)
  with pytest.raises(ValueError, match='singular values are of all three'):
    saved('vit', osf(QV), tmp_path / 'vit')


REJECTED = [
  (vera(QV, 3), {'save_projection': False}, 'depend on a generator of torch'),
  (vera(QV, 3), {'r': 5}, r'vera_A: expected shape \[5, 8\]'),
  (loha('fc1', 2), {'alpha': None}, 'expected a finite number for alpha'),
  (loha('fc1', 2), {'r': 3}, 'have rank 2, its configuration says 3'),
  (lokr('fc1', 2), {'decompose_factor': 2}, 'expects'),
  (oft('fc1', 4), {'peft_version': '0.17.1'}, 'adapters from before 0.18'),
  (oft('fc1', 4), {'peft_version': None}, 'adapters from before 0.18'),
  (oft('fc1', 4), {'coft': True}, 'coft=True is not supported'),
  (oft('fc1', 4), {'oft_block_size': 2}, r'oft_R.weight: expected shape \[4, 1\]'),
  (boft('fc1', 2), {'boft_n_butterfly_factor': 2}, 'boft_R: expected shape'),
  (hra('fc1', 2), {'apply_GS': True}, 'orthonormalised'),
  (hra('fc1', 2), {'r': 3}, r'hra_u: expected shape \[any, 3\]'),
  (miss('fc1', 2), {'init_weights': 'bat'}, "'bat' and 'mini' are other functions"),
  (c3a('fc1', 4), {'bias': 'all'}, "bias='all' is not supported"),
  (fourierft('fc1', 4), {'random_loc_seed': -1}, 'seed'),
  (fourierft('fc1', 4), {'scaling': 'large'}, 'expected a finite number for scaling'),
  (adalora('fc1', 3, 2), {'init_r': 2}, 'have rank 3, its configuration says 2'),
  (adalora('fc1', 3, 2), {'use_dora': True}, 'use_dora=True is not supported'),
  (shira('fc1', 1), {'r': 2}, r'shira_indices: expected shape \[2, 80\]'),
  (randlora('fc1', 2), {'r': 3}, r'randlora_A: expected shape \[3, 1, any\]'),
  (delora('fc1', 2), {'use_delora': 1}, 'use_delora may change what the adapter computes'),
  *((lora('fc1', 2), {'peft_type': name}, REFUSED[name][:20]) for name in REFUSED),
]  # fmt: skip


def test_ranks_that_eva_does_not_use_are_not_written(tmp_path):
  model, params = MODELS['decoder']
  peft = eva('mlp/(gate|up)', 2)
  delta = peft.init(jax.random.key(1), model.sites, params)
  used = {path: 3 if 'block_1' in path else 1 for path in delta}
  delta = {
    path: type(leaf)((leaf.a + 1).at[:, used[path] :].set(0), (leaf.b + 1).at[used[path] :].set(0))
    for path, leaf in delta.items()
  }
  adapted = Adapted(peft, delta, None)
  save_hf_peft(tmp_path, model, adapted, params)
  check_saved(tmp_path, model, adapted, params)
  back = load_hf_peft(tmp_path, model)
  assert {path: leaf.a.shape[1] for path, leaf in back.delta.items()} == used


def test_ranks_and_alphas_are_written_as_patterns(tmp_path):
  model, params = MODELS['decoder']
  peft = lora('mlp', 2, 3.0, ranks={'block_1': 3}, alphas={'down': 7.0})
  delta = peft.init(jax.random.key(1), model.sites, params)
  save_hf_peft(tmp_path, model, Adapted(peft, delta, None), params)
  config = json.loads((tmp_path / 'adapter_config.json').read_text())
  layer = 'model.layers.{}.mlp.{}_proj'.format
  assert (config['r'], config['lora_alpha']) == (2, 3)
  assert config['rank_pattern'] == {layer(1, name): 3 for name in ('gate', 'up', 'down')}
  assert config['alpha_pattern'] == {layer(i, 'down'): 7 for i in (0, 1)}


@pytest.mark.parametrize(('peft', 'change', 'message'), REJECTED, ids=lambda value: str(value)[:40])
def test_configurations_that_mean_something_else_are_refused(peft, change, message, tmp_path):
  saved('vit', peft, tmp_path)
  path = tmp_path / 'adapter_config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
  with pytest.raises(ValueError, match=message):
    load_hf_peft(tmp_path, VIT)


@pytest.mark.parametrize(
  ('tokens', 'message'),
  [
    (None, 'expected whole numbers for token_indices, got None'),
    ([1, True], 'expected whole numbers for token_indices'),
    ([1, 1], 'expected different tokens'),
    ([1, 99], 'token_indices has 99, but model.embed_tokens has 11 rows'),
    ([1, 2, 3], r'trainable_tokens_delta: expected shape \[3, 8\], got \[2, 8\]'),
  ],
)
def test_tokens_that_do_not_fit_are_refused(tokens, message, tmp_path):
  saved('decoder', trainable_tokens((7, 2)), tmp_path)
  path = tmp_path / 'adapter_config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'token_indices': tokens}))
  with pytest.raises(ValueError, match=message):
    load_hf_peft(tmp_path, TEXTS)


def test_factors_of_another_library_are_kept(tmp_path):
  adapted = saved('vit', vera('attn/k$|fc1', 3), tmp_path)
  path = str(tmp_path / 'adapter_model.safetensors')
  tensors = load_file(path)
  save_file({n: 2 * t if n.endswith('vera_A') else t for n, t in tensors.items()}, path)
  back = load_hf_peft(tmp_path, VIT)
  changes = [
    each.peft.update(each.delta, name, jnp.zeros(shape))
    for each in (adapted, back)
    for name, shape in (('block_0/attn/k', (8, 8)), ('block_1/mlp/fc1', (8, 32)))
  ]
  for once, twice in zip(changes[:2], changes[2:], strict=True):
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5, atol=1e-6)


def test_an_adapter_that_reads_back_as_another_is_found(tmp_path):
  adapted = saved('vit', lora(QV, 2), tmp_path)
  check_saved(tmp_path, *[VIT, adapted, MODELS['vit'][1]])
  other = adapted._replace(delta=jax.tree.map(lambda a: a + 0.01, adapted.delta))
  with pytest.raises(ValueError, match=r'not written as it should: weights/.* differs by'):
    check_saved(tmp_path, VIT, other, MODELS['vit'][1])
  with pytest.raises(ValueError, match='not written as it should: head/bias differs by 1'):
    head = adapted.head._replace(bias=adapted.head.bias + 1)
    check_saved(tmp_path, VIT, adapted._replace(head=head), MODELS['vit'][1])


def test_types_and_transforms_have_names_of_their_own():
  names = [name for kind in TYPES.values() for name in kind.transforms if kind.leaves]
  assert len(names) == len(set(names))
  assert set(names) <= {*PEFTS, 'prompt_tuning'}
  assert not set(TYPES) & set(REFUSED)
