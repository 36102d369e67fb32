"""A page is drawn again where anything that it shows was changed, and only there."""

import json

import pytest

from pecft_jax.report import write_page

RESULTS = {'method': 'ewc', 'accuracy_matrix': [[1.0, None], [0.5, 1.0]]}


@pytest.fixture
def page(tmp_path):
  (tmp_path / 'results.json').write_text(json.dumps(RESULTS))
  return write_page(tmp_path)


def _drawn_again(page):
  page.write_text(page.read_text() + 'marked')
  return 'marked' not in write_page(page.parent).read_text()


def test_an_unchanged_run_keeps_its_page(page):
  assert not _drawn_again(page)


CHANGES = {
  'results': lambda at: (at / 'results.json').write_text(json.dumps({**RESULTS, 'seed': 3})),
  'config': lambda at: (at / 'config.json').write_text('{"seed": 1}'),
  'log': lambda at: (at / 'metrics.jsonl').write_text('{"kind": "train", "task": 0}\n'),
  'reference': lambda at: (
    (at / 'references' / 'joint').mkdir(parents=True),
    (at / 'references' / 'joint' / 'results.json').write_text(json.dumps(RESULTS)),
  ),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_change_draws_the_page_again(change, page):
  CHANGES[change](page.parent)
  assert _drawn_again(page)


def test_a_page_of_another_version_is_drawn_again(page, monkeypatch):
  monkeypatch.setattr('pecft_jax.__version__', '9.9')
  assert _drawn_again(page)
