"""Runs of the command line, exported, and compared with what these runs recorded."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from tiny_runs import tiny_backbone, tiny_frozen, tiny_scenario

from pecft_jax import cli
from pecft_jax.continual.core import normalised
from pecft_jax.data.scenario import task_masks
from pecft_jax.interop import load_hf_peft

FILE = pathlib.Path(__file__).parents[1] / 'tiny_file.py'
TASKS = 3


def made(root, method, *more):
  """The work directory of a run."""
  workdir = root / method
  flags = ['--method', method, '--tasks', str(TASKS), '--workdir', str(workdir), *more]
  assert cli.main(['run', str(FILE), *flags]) == 0
  return workdir


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  methods = 'finetune', 'olora', 'derpp(olora)'
  return {method: made(root, method, '--keep-tasks') for method in methods}


def accuracies(adapted, after):
  """On the test data of each task learnt, among all classes seen."""
  scenario, backbone = tiny_scenario(TASKS), tiny_backbone()
  seen = task_masks(scenario, after - 1)[1]
  found = []
  for task in scenario.tasks[:after]:
    images = normalised(backbone.inputs, np.asarray(task.test.inputs[task.test.rows]))
    pooled = backbone.apply(tiny_frozen(), images, adapted.delta, peft=adapted.peft).pooled
    logits = np.where(seen, pooled @ adapted.head.kernel + adapted.head.bias, -np.inf)
    found.append(float((logits.argmax(-1) == task.test.labels).mean()))
  return found


@pytest.mark.parametrize('after', [1, 2, 3])
@pytest.mark.parametrize('method', ['finetune', 'olora', 'derpp(olora)'])
def test_what_is_exported_has_the_accuracies_of_the_run(runs, method, after, tmp_path):
  out = tmp_path / 'adapter'
  command = ['export', str(runs[method]), '--task', str(after), '--format', 'hf-peft', str(out)]
  assert cli.main(command) == 0
  row = json.loads((runs[method] / 'results.json').read_text())['accuracy_matrix'][after - 1]
  np.testing.assert_allclose(accuracies(load_hf_peft(out, tiny_backbone()), after), row[:after])
  config = json.loads((out / 'adapter_config.json').read_text())
  # O-LoRA adds up what all tasks learnt.
  assert config['r'] == 2 * (after if 'olora' in method else 1)


def test_the_last_task_is_the_default_and_the_card_names_what_was_learnt(runs, tmp_path, capsys):
  assert cli.main(['export', str(runs['finetune']), str(tmp_path / 'out')]) == 0
  assert 'finetune after tasks 1 to 3' in capsys.readouterr().out
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert '# finetune on tiny/class-incremental-3, after 3 of 3 tasks' in card
  assert '- 5: ' in card
  assert "timm's VisionTransformer with the weights of tiny" in card


def test_of_a_method_that_classifies_otherwise_the_delta_alone_is_exported(tmp_path):
  assert cli.main(['export', str(made(tmp_path, 'ranpac')), str(tmp_path / 'out')]) == 0
  assert load_hf_peft(tmp_path / 'out', tiny_backbone()).head is None
  assert 'not part of the adapter' in (tmp_path / 'out' / 'README.md').read_text()


def test_nothing_of_the_run_changes(runs, tmp_path):
  before = {path: path.stat().st_mtime_ns for path in runs['olora'].rglob('*')}
  cli.main(['export', str(runs['olora']), str(tmp_path / 'out')])
  assert {path: path.stat().st_mtime_ns for path in runs['olora'].rglob('*')} == before


def failing(capsys, *command):
  """What a command that fails says, in a line."""
  assert cli.main(['export', *map(str, command)]) == 1
  return ' '.join(capsys.readouterr().err.split())


def test_a_method_without_a_single_delta_is_refused(tmp_path, capsys):
  workdir = made(tmp_path, 'ease')
  assert 'ease has no single delta' in failing(capsys, workdir, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_task_without_a_checkpoint_is_refused(runs, tmp_path, capsys):
  text = failing(capsys, runs['olora'], '--task', 4, tmp_path / 'out')
  assert 'no checkpoint after task 4; there are some after [1, 2, 3]' in text


def test_an_unknown_format_is_refused(runs, tmp_path, capsys):
  text = failing(capsys, runs['olora'], '--format', 'hf_peft', tmp_path / 'out')
  assert "unknown format 'hf_peft'; did you mean 'hf-peft'?" in text


def test_a_directory_that_is_no_run_is_refused(tmp_path, capsys):
  assert 'is no work directory' in failing(capsys, tmp_path, tmp_path / 'out')


def test_an_experiment_file_that_moved_can_be_named(runs, tmp_path, capsys):
  workdir = shutil.copytree(runs['finetune'], tmp_path / 'run')
  config = json.loads((workdir / 'config.json').read_text())
  config['command']['file'] = str(tmp_path / 'gone.py')
  (workdir / 'config.json').write_text(json.dumps(config))
  assert 'no experiment file at' in failing(capsys, workdir, tmp_path / 'out')
  assert cli.main(['export', str(workdir), str(tmp_path / 'out'), '--file', str(FILE)]) == 0


def test_one_of_seeds_side_by_side_is_named(tmp_path, capsys):
  workdir = made(tmp_path, 'finetune', '--seeds', '2')
  assert 'has seeds [0, 1]: name one of them' in failing(capsys, workdir, tmp_path / 'out')
  row = lambda seed: json.loads((workdir / f'seed_{seed}/results.json').read_text())
  for seed in (0, 1):
    out = tmp_path / f'out_{seed}'
    assert cli.main(['export', str(workdir), str(out), '--seed', str(seed)]) == 0
    found = accuracies(load_hf_peft(out, tiny_backbone()), TASKS)
    np.testing.assert_allclose(found, row(seed)['accuracy_matrix'][-1])


def test_the_same_run_resumes_from_another_place(runs, monkeypatch, tmp_path):
  """The command is kept for export; it need not be the same."""
  monkeypatch.chdir(tmp_path)
  flags = ['--method', 'finetune', '--tasks', str(TASKS), '--workdir', str(runs['finetune'])]
  assert cli.main(['run', str(FILE), *flags]) == 0
