"""A bank is one adapter of huggingface/peft for each slot, and comes back as a bank."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax import peft
from pecft_jax.backbones import decoder, vit
from pecft_jax.interop import AdapterBank, load_hf_bank, save_hf_bank
from pecft_jax.interop.hf_types import TYPES
from pecft_jax.typing import LinearHead

IMAGES = vit(
  name='images', image_size=4, channels=1, patch=2, width=8, depth=2, heads=2, mean=(0.5,),
  std=(0.5,),
)  # fmt: skip
TEXTS = decoder(vocabulary=11, width=8, depth=2, heads=4, kv_heads=1, hidden=12, length=6)
PARAMS = {model.family: jax.jit(model.init)(jax.random.key(0)) for model in (IMAGES, TEXTS)}
QV, OUT = r'attn/(q|v)$', r'attn/out$|fc2'
NAMES = ('task_1', 'task_2', 'task_10')
TRANSFORMS = {
  'ADALORA': peft.adalora(QV, 3, 2),
  'BOFT': peft.boft(OUT, 2, factors=2),
  'C3A': peft.c3a(QV, 4),
  'DELORA': peft.delora(OUT, 2),
  'FOURIERFT': peft.fourierft(OUT, 9),
  'HIRA': peft.hira(QV, 2),
  'HRA': peft.hra(OUT, 2),
  'IA3': peft.ia3(),
  'LN_TUNING': peft.ln_tuning(),
  'LOHA': peft.loha(QV, 2, alpha=3.0),
  'LOKR': peft.lokr(OUT, 2),
  'LORA': peft.lora(QV, 2, alpha=3.0),
  'MISS': peft.miss(QV, 2),
  'OFT': peft.oft(OUT, 4),
  'OSF': peft.osf(OUT, 3, exact=False),
  'RANDLORA': peft.randlora(OUT, 3),
  'SHIRA': peft.shira(OUT, 1),
  'VERA': peft.vera(QV, 3),
}
PROMPTS = {
  'TRAINABLE_TOKENS': peft.trainable_tokens((7, 2)),
  'ADAPTION_PROMPT': peft.llama_adapter(length=2),
  'PREFIX_TUNING': peft.prefix(length=2),
  'PROMPT_TUNING': peft.prompt_tuning(3),
}
READ_ONLY = {kind for kind, each in TYPES.items() if not each.leaves}


def bank_of(model, transform, heads=(None,) * 3):
  """Three slots of random numbers."""
  rng = np.random.default_rng(0)
  shaken = lambda a: a + 0.2 * rng.normal(size=a.shape) if a.dtype == np.float32 else a
  make = lambda key: jax.tree.map(
    lambda a: jnp.asarray(shaken(np.asarray(a)), a.dtype),
    transform.init(key, model.sites, PARAMS[model.family]),
  )
  one = make(jax.random.key(1))
  kept = peft.split_kept(one)[1]  # Of all slots alike, as chosen entries are.
  slots = [peft.combine(peft.split_kept(make(jax.random.key(i)))[0], kept) for i in range(3)]
  return AdapterBank(transform, jax.tree.map(lambda *a: jnp.stack(a), *slots), NAMES, heads)


def test_every_type_that_is_written_is_here():
  assert {*TRANSFORMS, *PROMPTS, *READ_ONLY} == TYPES.keys()


def check_equal(found, bank, exactly=True):
  assert found.names == bank.names
  active = [peft.split_kept(each.delta)[0] for each in (found, bank)]
  assert jax.tree.structure(active[0]) == jax.tree.structure(active[1])
  for got, want in zip(*map(jax.tree.leaves, active), strict=True):
    np.testing.assert_allclose(got, want, rtol=0 if exactly else 1e-5, atol=0 if exactly else 1e-6)


@pytest.mark.parametrize('kind', [*TRANSFORMS, *PROMPTS])
def test_a_bank_comes_back(kind, tmp_path):
  # In timm's qkv, q would have factors of one, too.
  model = TEXTS if kind in PROMPTS or kind == 'IA3' else IMAGES
  bank = bank_of(model, {**TRANSFORMS, **PROMPTS}[kind])
  save_hf_bank(tmp_path, model, bank, PARAMS[model.family])
  found = load_hf_bank(tmp_path, model, params=PARAMS[model.family])
  # Keys of prefixes are rotated, and back; prompts beside attention are projected.
  check_equal(found, bank, exactly=kind not in ('PREFIX_TUNING', 'ADAPTION_PROMPT'))
  again = tmp_path / 'again'
  save_hf_bank(again, model, found, PARAMS[model.family])
  for name in NAMES:
    config = [json.loads((at / name / 'adapter_config.json').read_text())
              for at in (tmp_path, again)]  # fmt: skip
    assert config[0] == config[1]
    assert config[0]['peft_type'] == kind


def test_heads_and_an_order_of_ones_own(tmp_path):
  heads = tuple(LinearHead(jnp.full((8, 2), 0.5 * i), jnp.zeros(2)) for i in range(2))
  bank = bank_of(IMAGES, peft.lora(QV, 2), (*heads, None))
  save_hf_bank(tmp_path, IMAGES, bank, PARAMS['vit'])
  found = load_hf_bank(tmp_path, IMAGES, ('task_10', 'task_1'))
  assert found.heads[0] is None
  np.testing.assert_array_equal(found.heads[1].kernel, heads[0].kernel)
  check_equal(
    found, bank._replace(names=found.names, delta=peft.take(bank.delta, np.array([2, 0])))
  )


def test_slots_that_are_not_trained_yet_have_ranks_of_zeros(tmp_path):
  """Where q, k and v are one layer, the file of an adapter that does nothing names all of them."""
  bank = bank_of(IMAGES, peft.lora(QV, 2))
  delta = {at: leaf._replace(b=leaf.b.at[1].set(0)) for at, leaf in bank.delta.items()}
  save_hf_bank(tmp_path, IMAGES, bank._replace(delta=delta), PARAMS['vit'])
  found = load_hf_bank(tmp_path, IMAGES)
  x = jax.random.normal(jax.random.key(5), (2, 4, 4, 1))
  for slot in range(3):
    got, want = (
      IMAGES.apply(PARAMS['vit'], x, peft.take(each, slot), peft=transform).pooled
      for each, transform in ((found.delta, found.peft), (delta, bank.peft))
    )
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(names=('a', 'b')), 'one name and one head or None for each slot, got 2 names'),
    (dict(names=('a', 'a', 'b')), "different names of letters.* got \\['a', 'a', 'b'\\]"),
    (dict(names=('a', 'b.c', 'd')), 'different names of letters'),
    (dict(heads=(None,)), '1 heads'),
  ],
)
def test_banks_with_other_names_than_slots_are_refused(change, message, tmp_path):
  bank = bank_of(IMAGES, peft.lora('fc1', 2))
  with pytest.raises(ValueError, match=message):
    save_hf_bank(tmp_path, IMAGES, bank._replace(**change), PARAMS['vit'])
  assert not list(tmp_path.iterdir())


def test_adapters_of_several_kinds_are_no_bank(tmp_path):
  one = lambda name, transform: AdapterBank(
    transform,
    jax.tree.map(lambda a: a[:1], bank_of(IMAGES, transform).delta), (name,), (None,),
  )  # fmt: skip
  for name, transform in (
    ('a', peft.lora('fc1', 2, 4.0)), ('b', peft.lora('fc1', 2, 6.0)), ('c', peft.miss('fc1', 2)),
    ('d', peft.miss('fc2', 2)),
  ):  # fmt: skip
    save_hf_bank(tmp_path, IMAGES, one(name, transform), PARAMS['vit'])
  with pytest.raises(ValueError, match=r"scale differ: \{'scale': 2.0\} and \{'scale': 3.0\}"):
    load_hf_bank(tmp_path, IMAGES, 'ab')
  with pytest.raises(ValueError, match=r'no slots of one bank: .*name'):
    load_hf_bank(tmp_path, IMAGES, 'ac')
  with pytest.raises(ValueError, match=r'some act on .*fc2'):
    load_hf_bank(tmp_path, IMAGES, 'cd')
  with pytest.raises(ValueError, match=r"has \['b'\] already"):
    save_hf_bank(tmp_path, IMAGES, one('b', peft.lora('fc1', 2)), PARAMS['vit'])
  with pytest.raises(ValueError, match=r'has no directory with adapter_config.json'):
    load_hf_bank(tmp_path / 'a', IMAGES)
