import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / 'README.md'


@pytest.mark.slow
def test_the_python_examples_run_as_they_stand(tmp_path):
  blocks = re.findall(r'```python\n(.*?)```', README.read_text(encoding='utf-8'), re.DOTALL)
  assert len(blocks) == 2
  names = {'workdir': tmp_path / 'run'}
  for block in blocks:
    exec(compile(block, str(README), 'exec'), names)
  assert names['results']['status'] == 'done'
  assert any(abs(leaf).max() > 0 for leaf in names['jax'].tree.leaves(names['grads']))


def test_set_up_is_two_commands():
  commands = re.findall(r'^ +(pip install .*)$', README.read_text(encoding='utf-8'), re.MULTILINE)
  assert commands == [
    'pip install -e . && pecft run experiments/split_digits.py',
    "pip install -e '.[test]' && pytest",
  ]
