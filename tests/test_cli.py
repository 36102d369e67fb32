import json
import pathlib

import pytest

from pecft_jax import cli
from pecft_jax.catalog import METHODS, PEFTS, WRAPPERS

DIGITS = str(pathlib.Path(__file__).parents[1] / 'experiments' / 'split_digits.py')


@pytest.mark.parametrize('kind', ['peft', 'methods', 'benchmarks', 'backbones'])
def test_list_gives_each_name_a_line(capsys, kind):
  assert cli.main(['list', kind, '--json']) == 0
  entries = json.loads(capsys.readouterr().out)
  assert entries
  assert all(facts['summary'][0].isalnum() for facts in entries.values())


def test_lists_hold_what_can_be_run(capsys):
  cli.main(['list', 'methods', '--json'])
  listed = {name.split()[0] for name in json.loads(capsys.readouterr().out)}
  assert listed == set(METHODS) | set(WRAPPERS)
  cli.main(['list', 'peft', '--json'])
  assert set(json.loads(capsys.readouterr().out)) == set(PEFTS)


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
    (['--peft', 'lroa'], "did you mean 'lora'"),
    (['--wrap', 'derp'], "did you mean 'derpp'"),
    (['--method', 'simplecil', '--peft', 'lora'], 'it takes no PEFT'),
    (['--method', 'olora', '--peft', 'houlsby'], 'O-LoRA needs'),
    (['--method', 'simplecil', '--wrap', 'ewc'], 'trains nothing after the first task'),
    (['--tasks', '3'], 'increments'),
    (['--mesh', 'data'], 'expected a mesh as data=4,model=2'),
    (['--mesh', 'data=1,model=7'], 'does not fit'),
    (['--fsdp'], 'give one, as in --mesh data=8'),
    (['--seeds', '0'], 'expected --seeds of at least 1'),
    (['--seeds', '2', '--tensorboard'], 'shows one seed'),
    (['--branch', 'runs/trunk'], 'go together'),
    (['--after-task', '2'], 'go together'),
    (['--processes', '2'], 'without a coordinator'),
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
  assert cli.main(['inspect', str(tmp_path)]) == 0
  assert 'stopped, 0 of 0 tasks finished' in ' '.join(capsys.readouterr().out.split())
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
