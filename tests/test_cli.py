import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

from pecft_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = str(ROOT / 'experiments' / 'split_digits.py')


@pytest.mark.parametrize('kind', ['peft', 'methods', 'benchmarks', 'backbones'])
def test_list_gives_each_name_a_line(capsys, kind):
  assert cli.main(['list', kind, '--json']) == 0
  entries = json.loads(capsys.readouterr().out)
  assert entries
  assert all(facts['summary'][0].isalnum() for facts in entries.values())


def described(package):
  """Names of the functions below an `@about` in the files of a package."""
  for file in (ROOT / 'pecft_jax' / package).rglob('*.py'):
    for node in ast.parse(file.read_text(encoding='utf-8')).body:
      for call in getattr(node, 'decorator_list', ()):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == 'about':
          named = [each.value for each in call.keywords if each.arg == 'name']
          yield ast.literal_eval(named[0]) if named else node.name


@pytest.mark.parametrize(('kind', 'package'), [('methods', 'continual'), ('peft', 'peft')])
def test_lists_hold_all_that_files_describe(kind, package, capsys):
  cli.main(['list', kind, '--json'])
  listed = {name.split()[0] for name in json.loads(capsys.readouterr().out)}
  assert {'methods': {'l2p', 'ewc'}, 'peft': {'lora', 'prefix'}}[kind] <= listed
  assert listed == set(described(package))


def test_an_unknown_kind_suggests_the_nearest(capsys):
  assert cli.main(['list', 'method']) == 1
  assert "did you mean 'methods'" in capsys.readouterr().err.replace('\n', ' ')


def test_help_of_an_experiment_tells_each_flag(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(['run', DIGITS, '--help'])
  out = capsys.readouterr().out
  assert stop.value.code == 0
  for flag in ('--method', '--wrap', '--seed', '--workdir', '--mesh'):
    assert flag in out
  assert 'what learns' in out
  assert 'Seconds between checkpoints' in out


@pytest.mark.parametrize(('command', 'flag'), [('run', '--workdir'), ('plan', '--chip')])
def test_help_without_a_file_tells_the_flags_of_the_command(command, flag, capsys):
  assert cli.main([command, '--help']) == 0
  out = capsys.readouterr().out
  assert f'pecft {command} FILE' in out
  assert flag in out
  assert '--method' not in out


def test_a_run_without_a_file_is_an_error(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(['run'])
  assert stop.value.code == 2
  assert 'needs a FILE' in capsys.readouterr().err


def test_an_unknown_flag_suggests_the_nearest(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(['run', DIGITS, '--methd', 'ease'])
  captured = capsys.readouterr()
  assert stop.value.code != 0
  assert '--method' in captured.out + captured.err


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--method', 'easse'], "did you mean 'ease'"),
    (['--peft', 'lorra'], "did you mean 'lora'"),
    (['--wrap', 'derp'], "did you mean 'derpp'"),
    (['--method', 'simplecil', '--peft', 'lora'], 'it takes no PEFT'),
    (['--method', 'olora', '--peft', 'houlsby'], 'O-LoRA needs'),
    (['--method', 'simplecil', '--wrap', 'ewc'], 'trains nothing after the first task'),
    (['--tasks', '3'], 'increments'),
    (['--mesh', 'data'], 'expected a mesh as data=4,model=2'),
    (['--mesh', 'data=1,model=7'], 'does not fit'),
    (['--fsdp'], 'give one, as in --mesh data=8'),
    (['--seeds', '0'], 'expected --seeds of at least 1'),
    (['--seeds', '1000000000000'], 'at most 1024, got 1000000000000'),
    (['--seeds', '2', '--tensorboard'], 'shows one seed'),
    (['--mesh', 'data=1', '--rules'], '--rules needs rules behind it'),
    (['--peft', 'lora', '--set', 'lora.pattern=('], "pattern '(' is no regular expression"),
    (['--wrap', 'er', '--set', 'er.size=9223372036854775808'], 'expected an integer of 64 bits'),
    (['--branch', 'runs/trunk'], 'go together'),
    (['--after-task', '2'], 'go together'),
    (['--processes', '2'], 'need a coordinator'),
    (['--coordinator', 'here'], 'as HOST:PORT, or auto'),
    (['--rules', 'gram$='], '--rules says how to use a mesh'),
    (['--mesh', 'data=1', '--rules', 'gram'], 'expected a sharding rule as PATTERN=axis,axis'),
  ],
)
def test_mistakes_are_told_before_anything_runs(capsys, tmp_path, flags, message):
  assert cli.main(['run', DIGITS, '--workdir', str(tmp_path / 'run'), *flags]) == 1
  assert message in ' '.join(capsys.readouterr().err.split())
  assert not (tmp_path / 'run').exists()


def test_a_plan_of_an_experiment_says_what_it_takes(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.main(['plan', DIGITS, '--method', 'olora', '--mesh', 'data=4,model=2', '--fsdp']) == 0
  out = capsys.readouterr().out
  parts = (
    'olora on vit_glyphs16', 'mesh data=4, model=2', 'frozen weights', 'gradients',
    'optimizer state', 'memory of the method', 'activations', 'checkpoint',
    'sent to other devices', '1 task ', '100 tasks', 'TPU v5e', 'H100', 'images/s',
  )  # fmt: skip
  for part in parts:
    assert part in out, part
  assert not list(tmp_path.iterdir())


def test_a_plan_is_for_the_chip_that_is_named(capsys):
  flags = ['--method', 'simplecil', '--chip', 'h200', '--frozen-dtype', 'bfloat16']
  assert cli.main(['plan', DIGITS, *flags, '--utilisation', '0.3']) == 0
  out = ' '.join(capsys.readouterr().out.split())
  assert 'H200' in out
  assert 'TPU' not in out
  assert '30% is assumed' in out
  assert 'frozen weights 1.35 MB' in out  # 2.7 MB in float32.


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--chip', 'h10'], "did you mean 'h100'"),
    (['--mesh', 'model=2'], "a mesh needs an axis 'data'"),
    (['--mesh', 'data=5'], 'cannot be split over the 5 devices'),
    (['--fsdp'], 'give one, as in --mesh data=8'),
    (['--utilisation', '2'], 'utilisation must be in (0, 1]'),
    (['--method', 'easse'], "did you mean 'ease'"),
  ],
)
def test_mistakes_in_a_plan_are_told(capsys, flags, message):
  assert cli.main(['plan', DIGITS, *flags]) == 1
  assert message in ' '.join(capsys.readouterr().err.split())


def test_help_of_a_plan_tells_flags_of_both(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(['plan', DIGITS, '--help'])
  out = capsys.readouterr().out
  assert stop.value.code == 0
  for flag in ('--method', '--batch-size', '--mesh', '--chip', '--utilisation'):
    assert flag in out
  assert '--workdir' not in out


def test_a_file_without_an_experiment_is_refused(capsys, tmp_path):
  (tmp_path / 'nothing.py').write_text('x = 1\n')
  assert cli.main(['run', str(tmp_path / 'nothing.py')]) == 1
  assert 'no function experiment' in capsys.readouterr().err
  assert cli.main(['run', str(tmp_path / 'absent.py')]) == 1
  assert 'no experiment file' in capsys.readouterr().err


def test_inspect_tells_what_is_there_and_fails_where_something_is_damaged(capsys, tmp_path):
  for name in ('config.json', 'results.json'):
    (tmp_path / name).write_text('{"status": "running", "seed": 4}')
  assert cli.main(['inspect', str(tmp_path)]) == 1  # Its checkpoints are gone.
  printed = ' '.join(capsys.readouterr().out.split())
  assert 'stopped, 0 of 0 tasks finished' in printed and 'checkpoints' in printed
  (tmp_path / 'config.json').write_text('{')
  assert cli.main(['inspect', str(tmp_path), '--json', '--verify']) == 1
  facts = json.loads(capsys.readouterr().out)
  assert 'config.json, line 1, is damaged' in facts['problems'][0]
  assert cli.main(['inspect', str(tmp_path / 'absent')]) == 1
  assert 'there is no directory' in capsys.readouterr().err


@pytest.mark.slow
def test_seeds_side_by_side_are_compared(capsys, monkeypatch, tmp_path):
  tests = pathlib.Path(__file__).parent
  monkeypatch.syspath_prepend(tests)
  command = ['run', str(tests / 'tiny_file.py'), '--workdir', str(tmp_path), '--seeds', '2']
  assert cli.main(command) == 0
  assert (tmp_path / 'report.html').exists()
  for seed in (0, 1):
    assert (tmp_path / f'seed_{seed}' / 'report.html').exists()
  capsys.readouterr()
  assert cli.main(['report', '--markdown', str(tmp_path)]) == 0
  assert '| finetune | ' in capsys.readouterr().out


def test_seeds_that_learn_different_things_are_refused(capsys, tmp_path):
  """The class order of digits may be drawn by a seed of its own, so this one is made up."""
  file = tmp_path / 'shuffled.py'
  file.write_text(
    'from tiny_runs import tiny_experiment\n'
    'def experiment(*, seed: int = 0):\n'
    '  return tiny_experiment(tasks=2 + seed, seed=seed)\n'
  )
  command = ['run', str(file), '--workdir', str(tmp_path / 'run'), '--seeds', '2']
  assert cli.main(command) == 1
  assert 'run them one by one' in ' '.join(capsys.readouterr().err.split())


FILE = 'def experiment(*, seed: int = 0):\n  {}\n'


def ran(tmp_path, body, *flags, command='run'):
  """The exit status of a command on a file with such a function."""
  (tmp_path / 'mine.py').write_text(body if body.startswith(('def', 'x')) else FILE.format(body))
  where = ['--workdir', str(tmp_path / 'run')] if command == 'run' else []
  return cli.main([command, str(tmp_path / 'mine.py'), *where, *flags])


def said(capsys):
  return ' '.join(capsys.readouterr().err.split())


@pytest.mark.parametrize('command', ['run', 'plan'])
@pytest.mark.parametrize(
  ('body', 'got'),
  [
    ('return None', 'got NoneType; does it lack a return?'),
    ('return (1, 2)', 'got tuple'),
    ("return {'model': 1}", 'got dict'),
    ('yield 1', 'got generator'),
  ],
)
def test_a_function_that_returns_no_experiment_is_refused(capsys, tmp_path, command, body, got):
  assert ran(tmp_path, body, command=command) == 1
  text = said(capsys)
  assert 'expected experiment(...) to return an Experiment' in text
  assert got in text


@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ('def experiment(*args): ...\n', 'expected names, got *args'),
    ('def experiment(**more): ...\n', 'expected names, got *more'),
    ('def experiment(*, workdir: str = ""): ...\n', '--workdir is a flag of pecft itself'),
    ('def experiment(*, debug: bool = False): ...\n', '--debug is a flag of pecft itself'),
    ('def experiment(:\n', 'mine.py, line 1: invalid syntax'),
  ],
)
def test_a_file_whose_parameters_cannot_be_flags_is_refused(capsys, tmp_path, body, message):
  assert ran(tmp_path, body) == 1
  assert message in said(capsys)


@pytest.mark.parametrize('command', ['run', 'plan'])
@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ("raise ValueError('mine')", 'error: mine'),
    ('return 1 / 0', 'error: ZeroDivisionError: division by zero'),
    ("open('/no/such/file')", 'error: FileNotFoundError: [Errno 2]'),
    ('from pecft_jax.peft import lora; lora(rank=0)', 'error: rank must be at least 1, got 0'),
  ],
)
def test_an_error_in_the_users_file_shows_where(capsys, tmp_path, command, body, message):
  assert ran(tmp_path, body, command=command) == 1
  text = said(capsys)
  assert message in text
  assert f'mine.py, line 2, in experiment {body}' in text
  assert 'pecft_jax/' not in text.replace(str(tmp_path), '')
  assert '--debug shows the whole traceback' in text


@pytest.mark.parametrize('flags', [['--debug'], ['--seed', '1', '--debug']])
def test_debug_shows_everything(tmp_path, flags):
  with pytest.raises(ValueError, match='mine') as raised:
    ran(tmp_path, "raise ValueError('mine')", *flags)
  files = {pathlib.Path(str(entry.path)).name for entry in raised.traceback}
  assert {'mine.py', 'run.py', 'cli.py'} <= files
  with pytest.raises(ValueError, match='no directory'):
    cli.main(['--debug', 'inspect', str(tmp_path / 'absent')])


def test_an_error_of_the_library_alone_shows_no_code(capsys, tmp_path):
  assert cli.main(['inspect', str(tmp_path / 'absent')]) == 1
  assert said(capsys) == f'error: there is no directory {tmp_path}/absent'


def test_an_error_in_a_users_method_shows_where_it_was_traced(capsys, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
  body = (
    'def experiment():\n'
    '  from tiny_runs import tiny_experiment\n'
    '  made = tiny_experiment()\n'
    '  def loss(params, memory, env, batch, key):\n'
    '    raise ArithmeticError("no loss today")\n'
    '  return made.replace(method=made.method._replace(loss=loss))\n'
  )
  assert ran(tmp_path, body) == 1
  text = said(capsys)
  assert 'error: ArithmeticError: no loss today' in text
  assert 'mine.py, line 5, in loss raise ArithmeticError' in text


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--mesh', 'data=1,data=1'], "axis 'data' comes twice"),
    (['--mesh', 'data=0'], 'expected a mesh as data=4,model=2'),
    (['--wrap', 'ewc,ewc'], "wrapper 'ewc' is named twice"),
    (['--wrap', 'ewc,,lwf'], "unknown wrapper ''"),
    (['--method', 'ewc'], "'ewc' is a wrapper, not a method: give it as --wrap ewc"),
    (['--peft', ''], "unknown transform ''"),
    (['--method', 'math:sqrt'], 'math:sqrt cannot be called as a method'),
    (['--learning-rate', 'nan'], 'learning_rate: expected a finite number, got nan'),
    (['--learning-rate', '1e39'], 'learning_rate: expected a finite number, got 1e+39'),
    (['--set', 'adaptformer.scale=inf'], 'scale: expected a finite number, got inf'),
    (['--batch-size', '100000'], 'batch_size 100000 is above all that task'),
    (['--save-every', 'nan'], 'save_every: expected a finite number, got nan'),
    (['--save-every', '-1'], 'save_every must be at least 0'),
    (['--branch', 'runs/trunk', '--after-task', '0'], '--after-task counts tasks from 1'),
  ],
)
def test_odd_values_of_flags_are_refused_before_anything_runs(capsys, tmp_path, flags, message):
  assert cli.main(['run', DIGITS, '--workdir', str(tmp_path / 'run'), *flags]) == 1
  assert message in said(capsys)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('flags', [['--workdir', ''], ['--workdir='], ['--workdir', 'None']])
def test_a_directory_that_is_named_by_nothing_is_refused(capsys, flags):
  assert cli.main(['run', DIGITS, *flags]) == 1
  assert 'names no directory' in said(capsys)


def test_the_page_of_one_run_goes_where_it_is_asked(capsys, tmp_path):
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'results.json').write_text('{"method": "ewc", "accuracy_matrix": [[1.0]]}')
  assert cli.main(['report', str(run), '--out', str(tmp_path / 'pages' / 'mine.html')]) == 0
  assert (tmp_path / 'pages' / 'mine.html').exists()
  assert not (run / 'report.html').exists()
  assert cli.main(['report', str(run)]) == 0
  assert (run / 'report.html').exists()
  assert cli.main(['report', str(run), str(run / '.')]) == 1
  assert 'is named twice' in said(capsys)
  assert cli.main(['report', str(run), '--markdown', '--out', str(tmp_path / 'a.html')]) == 1
  assert 'give one of them' in said(capsys)


@pytest.mark.parametrize('flags', [['list', 'methods'], ['list', 'methods', '--json']])
def test_a_reader_that_goes_away_is_no_error(flags):
  # As `| head -c 0` does.
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    [sys.executable, '-m', 'pecft_jax', *flags],
    stdout=write,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  os.close(write)
  assert done.stderr == ''
  assert done.returncode != 0
