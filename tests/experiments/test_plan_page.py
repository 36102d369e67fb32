import importlib.util
import pathlib
import sys

import jax.numpy as jnp
import pytest

from pecft_jax.backbones import cards
from pecft_jax.peft import PEFTS

FILE = pathlib.Path(__file__).parents[2] / 'experiments' / 'plan.py'


@pytest.fixture(scope='module')
def page():
  """The script, as a module."""
  spec = importlib.util.spec_from_file_location('plan_page', FILE)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules['plan_page'] = module
  spec.loader.exec_module(module)
  return module


def test_models_of_the_page_are_cards_of_the_library(page):
  assert {case.card for case in (*page.CASES, *page.VARIANTS)} <= cards().keys()


def test_a_model_has_a_row_for_each_transform(page, monkeypatch):
  some = {name: PEFTS[name] for name in ('linear_probe', 'bitfit', 'vera', 'lora')}
  monkeypatch.setattr(page, 'PEFTS', some)
  case = page.Case('vit_glyphs16', 4, page.ONE, (), jnp.float32, {'depth': 1})
  lines, plans = page.model_section(case, lambda text: None)
  assert list(plans) == list(some)
  rows = [line.split(' | ')[0].removeprefix('| ') for line in lines if line.startswith('| ')]
  assert rows == ['PEFT', '---', *some]


def test_a_transform_that_does_not_fit_is_told(page, monkeypatch):
  monkeypatch.setattr(page, 'PEFTS', {name: PEFTS[name] for name in ('bitfit', 'lora')})
  text = {**page.TEXT, 'length': 8, 'depth': 1, 'width': 64, 'heads': 2, 'kv_heads': 1}
  case = page.Case('llama_3.2_1b', 2, page.ONE, (), jnp.bfloat16, text)
  lines, plans = page.model_section(case, lambda text: None)
  assert list(plans) == ['lora']
  assert any(line.startswith('- bitfit: no leaf matches') for line in lines)


def test_the_committed_page_is_of_these_words(page):
  text = (FILE.parent / 'results' / 'plan.md').read_text(encoding='utf-8')
  assert text.startswith(page.HEAD)
  assert page.CHECKED_HOW in text
  assert '\n'.join(page.chips_section()) in text
  for case in page.CASES:
    assert f'## {case.card}:' in text


def test_the_committed_growth_is_what_methods_carry(page):
  """Of the methods on the page: one that is added since does not make it wrong."""
  text = (FILE.parent / 'results' / 'plan.md').read_text(encoding='utf-8')
  title, *_, last = computed = [line for line in page.growth_section() if line]
  committed = text[text.index(title) :].partition('\n## How checked')[0].split('\n')
  assert {line for line in committed if line} <= set(computed)
  assert sum(line.startswith('| ') for line in committed) > 15, last
