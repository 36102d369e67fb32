"""The pages of the site: their links lead somewhere, and their examples run."""

import pathlib
import re

import numpy as np
import pytest
from test_readme import run_examples

from pecft_jax.continual import METHODS, WRAPPERS
from pecft_jax.peft import PEFTS

ROOT = pathlib.Path(__file__).parents[1]
GUIDES = ROOT / 'experiments' / 'guides'
PAGES = sorted(
  page
  for folder in (ROOT, GUIDES, ROOT / 'experiments' / 'results')
  for page in folder.glob('**/*.md' if folder != ROOT else '*.md')
)
_FENCE = re.compile(r'^```.*?^```', re.DOTALL | re.MULTILINE)


def _prose(page):
  return _FENCE.sub('', page.read_text(encoding='utf-8'))


def _anchors(page):
  """The headings of a page as the site names them."""
  for heading in re.findall(r'^#+ (.+)$', _prose(page), re.MULTILINE):
    text = re.sub(r'[^\w\s-]', '', heading.strip().lower())
    yield re.sub(r'[-\s]+', '-', text).strip('-')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', _prose(page)):
    if re.match(r'https?://', target):
      continue
    file, _, anchor = target.partition('#')
    linked = (page.parent / file).resolve() if file else page
    assert linked.exists(), target
    if anchor:
      assert anchor in set(_anchors(linked)), target


@pytest.mark.parametrize(
  'page', sorted(GUIDES.glob('**/*.md')), ids=lambda page: str(page.relative_to(GUIDES))
)
def test_files_that_a_guide_names_are_there(page):
  named = re.findall(r'`((?:pecft_jax|experiments|tests)/[\w./]+\.(?:py|md|json))`', _prose(page))
  assert [name for name in named if not (ROOT / name).exists()] == []


def test_choosing_a_method_names_every_method_wrapper_and_transform():
  named = set(re.findall(r'`(\w+)', (GUIDES / 'choosing.md').read_text(encoding='utf-8')))
  assert (METHODS.keys() | WRAPPERS.keys() | PEFTS.keys()) - named == set()


def test_the_readme_takes_five_minutes_to_read():
  lines = _prose(ROOT / 'README.md').splitlines()
  prose = [line for line in lines if not line.startswith(('|', '    ', '!['))]
  assert len(' '.join(prose).split()) <= 5 * 240


def test_the_site_has_each_page_once():
  navigation = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8').partition('\nvalidation:')[0]
  listed = re.findall(r': ([\w/]+\.md)$', navigation, re.MULTILINE)
  assert sorted(listed) == sorted(str(page.relative_to(GUIDES)) for page in GUIDES.glob('**/*.md'))


def test_each_facade_is_in_the_reference():
  facades = {
    '.'.join(file.parent.relative_to(ROOT).parts)
    for file in (ROOT / 'pecft_jax').glob('*/__init__.py')
    if '__all__' in file.read_text(encoding='utf-8')
  }
  shown = {
    line.removeprefix('::: ')
    for page in (GUIDES / 'api').glob('*.md')
    for line in page.read_text(encoding='utf-8').splitlines()
    if line.startswith('::: ')
  }
  assert facades <= shown


def test_drawings_of_the_guides_need_nothing_from_elsewhere():
  drawings = list(GUIDES.glob('**/*.svg'))
  assert drawings
  for drawing in drawings:
    text = drawing.read_text(encoding='utf-8').replace('http://www.w3.org/2000/svg', '')
    assert 'http' not in text and '<image' not in text


# `your_own.md` has a test of its own, which looks at what its examples make.
PAGE_TEXTS = {page.stem: page.read_text(encoding='utf-8') for page in GUIDES.glob('*.md')}
WITH_EXAMPLES = {name for name, text in PAGE_TEXTS.items() if '```python' in text}


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(WITH_EXAMPLES - {'your_own'}))
def test_the_examples_of_a_guide_run(name, tmp_path):
  if name == 'data':
    pytest.importorskip('tokenizers')
  names = run_examples(GUIDES / f'{name}.md', workdir=tmp_path)
  if name == 'data':
    assert names['results']['metrics']['average_accuracy'] == 1
    assert names['reviews'].inputs.tolist() == [[3, 1, -1, -1], [2, -1, -1, -1]]
  if name == 'comparing':
    assert all(trial.score > 0.9 for trial in names['found'].trials)
    assert names['orders'].similarity[0] < names['orders'].similarity[2]
  if name == 'use':
    assert names['labels'] == [path.parent.name for path in names['files'].paths]
    assert names['counts'].trace() == names['correct'] == len(names['answers'])
    images = names['files'][range(3)]
    np.testing.assert_array_equal(names['again'].predict(images), names['learner'].predict(images))
    assert (tmp_path / 'program' / 'predict.stablehlo').is_file()
  if name == 'adapters':
    # Of an update that isn't zero: merged weights of another function would be far from it.
    model, own = names['model'], names['again']
    plain, tuned = (
      model.backbone.apply(model.params, names['images'], delta, peft=own.peft).pooled
      for delta in ({}, own.delta)
    )
    assert np.abs(plain - tuned).max() > 0.1
    assert names['error'] < 1e-5
    assert names['features'].shape == (2, names['model'].backbone.width)
    through = lambda slot: model.backbone.apply(
      model.params, names['images'], names['take'](names['stacked'], slot), peft=names['peft']
    ).pooled  # fmt: skip
    third, first = through(2), through(0)
    assert np.abs(third - first).max() > 0.1
    np.testing.assert_allclose(names['features'], [third[0], first[1]], atol=1e-4)
