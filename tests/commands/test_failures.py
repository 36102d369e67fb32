"""Errors of any kind: a user's own show the user's lines, a fault of this library shows all."""

import pathlib

import pytest

from pecft_jax import cli
from pecft_jax.commands import files, look
from pecft_jax.commands.failures import told, words


def ran(tmp_path, body, *flags):
  """The exit status of a run of a file with such a function."""
  (tmp_path / 'mine.py').write_text(f'def experiment(*, seed: int = 0):\n  {body}\n')
  return cli.main(
    ['run', str(tmp_path / 'mine.py'), '--workdir', str(tmp_path / 'run'), '--seed', '1', *flags]
  )


def said(capsys):
  return ' '.join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ("{}['a']", "error: KeyError: 'a'"),
    ("1 + 'a'", 'error: TypeError: unsupported operand type(s) for +'),
    ('None.x', "error: AttributeError: 'NoneType' object has no attribute 'x'"),
    ('import nothing_there', 'error: ModuleNotFoundError: No module named'),
    ('from os import nothing_there', 'error: ImportError: cannot import name'),
    ('assert seed == 2', 'error: AssertionError'),
    ("raise type('Mine', (Exception,), {})('of its own')", 'error: Mine: of its own'),
    ("compile('(', 'text', 'eval')", "error: SyntaxError: '(' was never closed"),
    ('import numpy as np; np.ones(3)[7]', 'error: IndexError: index 7 is out of bounds'),
    ('import jax.numpy as jnp; jnp.ones(3) @ jnp.ones(4)', 'error: TypeError: '),
    ('from pecft_jax.peft import lora; lora(rnk=2)', 'error: TypeError: got an unexpected'),
  ],
)
def test_an_error_of_any_kind_shows_the_users_line(capsys, tmp_path, body, message):
  assert ran(tmp_path, body) == 1
  text = said(capsys)
  assert message in text
  assert f'mine.py, line 2, in experiment {body}' in text
  assert 'Traceback' not in text
  assert text.endswith('(--debug shows the whole traceback)')


def test_debug_raises_an_error_of_any_kind(tmp_path):
  with pytest.raises(KeyError) as raised:
    ran(tmp_path, "{}['a']", '--debug')
  paths = {pathlib.Path(str(entry.path)).name for entry in raised.traceback}
  assert {'mine.py', 'run.py', 'cli.py'} <= paths


def test_an_error_while_the_file_is_loaded_shows_its_line(capsys, tmp_path):
  (tmp_path / 'mine.py').write_text('x = 1\nimport beside_it\n')
  (tmp_path / 'beside_it.py').write_text('\ny = {}["absent"]\n')
  assert cli.main(['run', str(tmp_path / 'mine.py')]) == 1
  text = said(capsys)
  assert "error: KeyError: 'absent'" in text
  assert 'mine.py, line 2, in <module> import beside_it' in text
  assert 'beside_it.py, line 2, in <module>' in text
  assert 'importlib' not in text


def test_a_hook_that_fails_while_it_is_traced_shows_its_line(capsys, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[1])
  body = (
    'from tiny_runs import tiny_experiment\n'
    '  def loss(params, memory, env, batch, key):\n'
    "    return params['no such entry']\n"
    '  made = tiny_experiment()\n'
    '  return made.replace(method=made.method._replace(loss=loss))'
  )
  assert ran(tmp_path, body) == 1
  text = said(capsys)
  assert 'mine.py, line 4, in loss' in text
  assert 'error: ' in text and 'jax/_src' not in text and 'JAX has removed' not in text


def test_a_module_of_a_method_with_wrong_syntax_is_named(capsys, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'wrongly_written.py').write_text('\ndef (:\n')
  assert cli.main(['run', 'split_digits', '--method', 'wrongly_written:mine']) == 1
  assert f'error: {tmp_path}/wrongly_written.py, line 2: invalid syntax' in said(capsys)


def test_a_fault_of_the_library_shows_the_whole_traceback(monkeypatch, tmp_path):
  """Of its own command, and below a line of the user's."""

  def fault(*args, **kwargs):
    raise KeyError('a fault')

  ours = compile('def fault(*args, **kwargs):\n  return {}["a fault"]\n', look.__file__, 'exec')
  found = {}
  exec(ours, found)
  monkeypatch.setattr(files, 'unknown', found['fault'])
  with pytest.raises(KeyError, match='a fault'):
    cli.main(['run', 'nothing'])
  body = "from pecft_jax.commands import files; files.find_experiment('nothing')"
  with pytest.raises(KeyError, match='a fault'):
    ran(tmp_path, body)
  monkeypatch.setattr(files, 'unknown', fault)  # Of this file, which is not the library's.
  assert ran(tmp_path, body) == 1


def test_ctrl_c_is_no_error(capsys, tmp_path):
  assert ran(tmp_path, 'raise KeyboardInterrupt') == 130
  assert said(capsys) == 'interrupted'
  with pytest.raises(KeyboardInterrupt):
    ran(tmp_path, 'raise KeyboardInterrupt', '--debug')


@pytest.mark.parametrize('status', [0, 3, 'a reason'])
def test_a_file_may_end_the_process_with_a_status_of_its_own(tmp_path, status):
  with pytest.raises(SystemExit) as stop:
    ran(tmp_path, f'raise SystemExit({status!r})')
  assert stop.value.code == status


def test_mistakes_are_told_and_faults_are_not():
  assert told(ValueError('a mistake')) == 'error: a mistake'
  assert words(ValueError('a mistake')) == 'error: a mistake'
  assert words(ValueError('a mistake'), debug=True) is None
  assert words(KeyError('a fault')) is None
