"""What a file and a function are made of."""

from pecft_jax.sources import files_beside


def test_what_a_file_imports_from_beside_it_counts(tmp_path):
  (tmp_path / 'parts').mkdir()
  texts = {
    'run.py': 'import os, helper\ndef f():\n  from parts import model\n',
    'helper.py': 'import jax\n',
    'parts/__init__.py': '',
    'parts/model.py': 'from . import layers\n',
    'parts/layers.py': 'import run\n',
    'other.py': '',
  }
  for name, text in texts.items():
    (tmp_path / name).write_text(text)
  found = files_beside(tmp_path / 'run.py')
  assert sorted(found) == sorted(texts.keys() - {'other.py'})
  (tmp_path / 'parts/layers.py').write_text('import run  # changed')
  changed = files_beside(tmp_path / 'run.py')
  assert [name for name in found if found[name] != changed[name]] == ['parts/layers.py']
