import sys

import numpy as np
import pytest

from pecft_jax import data

tokenizers = pytest.importorskip('tokenizers')

IDS = {'[CLS]': 0, 'the': 1, 'cat': 2, 'dog': 3, 'sleeps': 4, '?': 5}


@pytest.fixture
def tokenizer(tmp_path):
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(IDS, unk_token='?'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    '[CLS] $A', special_tokens=[('[CLS]', 0)]
  )
  # What the file says of lengths has no effect: those of the backbone count.
  made.enable_truncation(2)
  made.enable_padding(length=9)
  made.save(str(tmp_path / 'tokenizer.json'))
  return tmp_path / 'tokenizer.json'


@pytest.fixture
def table(tmp_path):
  path = tmp_path / 'pets.csv'
  path.write_text('text,label,domain\nthe cat sleeps,quiet,day\nthe dog,loud,night\n')
  return path


def test_texts_become_token_ids_with_special_tokens_and_pads(table, tokenizer):
  source = data.text_table(table, tokenizer, length=5)
  assert source.inputs.tolist() == [[0, 1, 2, 4, -1], [0, 1, 3, -1, -1]]
  assert source.inputs.dtype == np.int32
  assert source.class_names == ('loud', 'quiet') and source.labels.tolist() == [1, 0]
  assert source.domain_names == ('day', 'night') and source.domains.tolist() == [0, 1]
  assert data.text_table(table, tokenizer, length=5, pad=9).inputs[1].tolist() == [0, 1, 3, 9, 9]
  other = data.text_table(table, tokenizer, length=5, class_names=['quiet', 'x', 'loud'])
  assert other.labels.tolist() == [0, 2]


def test_a_text_that_is_too_long_is_refused_or_cut_with_a_warning(table, tokenizer):
  with pytest.raises(ValueError, match=r'pets.csv, line 2: 4 tokens, expected at most 3; 1 of 2'):
    data.text_table(table, tokenizer, length=3)
  with pytest.warns(UserWarning, match='the ends of 1 of 2 texts are cut off') as caught:
    source = data.text_table(table, tokenizer, length=3, too_long='cut')
  assert source.inputs.tolist() == [[0, 1, 2], [0, 1, 3]]
  assert caught[0].filename == __file__


def test_lines_are_texts_without_labels(tmp_path, tokenizer):
  (tmp_path / 'a.txt').write_text('the cat\nthe elephant\n')
  found = data.text_lines(tmp_path / 'a.txt', tokenizer, length=4)
  assert found.tolist() == [[0, 1, 2, -1], [0, 1, 5, -1]]
  (tmp_path / 'a.txt').write_text('')
  with pytest.raises(ValueError, match=r'a.txt has no lines'):
    data.text_lines(tmp_path / 'a.txt', tokenizer, length=4)
  (tmp_path / 'a.txt').write_bytes(b'\xff\n')
  with pytest.raises(ValueError, match=r'a.txt: expected UTF-8 text'):
    data.text_lines(tmp_path / 'a.txt', tokenizer, length=4)


def test_a_text_without_tokens_or_with_the_pad_id_is_named(tmp_path, tokenizer):
  (tmp_path / 'a.txt').write_text('the cat\n\n')
  with pytest.raises(ValueError, match=r'a.txt, line 1: the pad id 2 is a token of the text'):
    data.text_lines(tmp_path / 'a.txt', tokenizer, length=4, pad=2)
  plain = tokenizers.Tokenizer.from_file(str(tokenizer))
  plain.post_processor = tokenizers.processors.Sequence([])
  plain.save(str(tokenizer))
  with pytest.raises(ValueError, match=r'a.txt, line 2: a text without tokens'):
    data.text_lines(tmp_path / 'a.txt', tokenizer, length=4)


def test_a_tokenizer_that_is_none_or_not_there_is_named(tmp_path, table):
  with pytest.raises(FileNotFoundError, match=r'no tokenizer .*tokenizer.json'):
    data.text_table(table, tmp_path / 'tokenizer.json', length=3)
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match=r'tokenizer.json is not a tokenizer.json: it has no model'):
    data.text_table(table, tmp_path / 'tokenizer.json', length=3)


def test_what_is_missing_is_said(table, tokenizer, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  with pytest.raises(ValueError, match=r"pip install 'pecft_jax\[text\]'"):
    data.text_table(table, tokenizer, length=5)
