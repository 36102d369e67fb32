"""An adapter says which weights it is for."""

import jax
import pytest

from pecft_jax.backbones import vit
from pecft_jax.interop import load_hf_peft, save_hf_peft
from pecft_jax.interop.base import base_sha256
from pecft_jax.peft import lora
from pecft_jax.typing import Adapted

SIZES = {
  'image_size': 8, 'channels': 1, 'patch': 4, 'width': 8, 'depth': 2, 'heads': 2, 'mean': (0.5,),
  'std': (0.5,),
}  # fmt: skip


def test_the_digest_of_weights_does_not_depend_on_how_they_are_stored():
  loop, scan = vit(**SIZES), vit(**SIZES, scan=True)
  key = jax.random.key(0)
  assert base_sha256(loop, loop.init(key)) == base_sha256(scan, scan.init(key))
  assert base_sha256(loop, loop.init(key)) != base_sha256(loop, loop.init(jax.random.key(1)))


def test_an_adapter_is_refused_on_another_base_unless_asked(tmp_path):
  backbone, peft = vit(**SIZES), lora('attn/q$', rank=2)
  mine, other = (backbone.init(jax.random.key(seed)) for seed in (0, 1))
  delta = peft.init(jax.random.key(2), backbone.sites, mine)
  save_hf_peft(tmp_path / 'out', backbone, Adapted(peft, delta, None), mine)
  load_hf_peft(tmp_path / 'out', backbone, params=mine)
  with pytest.raises(ValueError, match=r'it is for vit with sha256 .* got weights with'):
    load_hf_peft(tmp_path / 'out', backbone, params=other)
  load_hf_peft(tmp_path / 'out', backbone, params=other, any_base=True)
  load_hf_peft(tmp_path / 'out', backbone)
