"""Runs of the command line, exported, and compared with what these runs recorded."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.flax import load_file
from tiny_runs import (
  silent,
  tiny_backbone,
  tiny_experiment,
  tiny_frozen,
  tiny_method,
  tiny_scenario,
)

from pecft_jax import backbones, cli
from pecft_jax.continual import finetune
from pecft_jax.continual.core import normalised
from pecft_jax.data.scenario import task_masks
from pecft_jax.interop import load_hf_peft
from pecft_jax.learners import load_bundle, load_run
from pecft_jax.train import run

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


@pytest.fixture(scope='module')
def ease(tmp_path_factory):
  return made(tmp_path_factory.mktemp('ease'), 'ease')


def test_a_method_without_a_single_delta_is_refused_with_formats_that_take_it(
  ease, tmp_path, capsys
):
  text = failing(capsys, ease, tmp_path / 'out')
  assert 'ease has no single delta' in text
  assert '--format bundle and --format stablehlo take any method' in text
  assert not (tmp_path / 'out').exists()


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)


def answers_of(workdir):
  """What the last checkpoint of a run answers, with the model of the experiment."""
  experiment = tiny_experiment(workdir.name, TASKS)
  learner = load_run(workdir, model=experiment.model, method=experiment.method)
  return learner.predict(IMAGES)


@pytest.mark.parametrize('method', ['ease', 'l2p'])
def test_a_bundle_of_any_method_answers_as_the_run_does(method, ease, tmp_path, capsys):
  workdir = ease if method == 'ease' else made(tmp_path, method)
  assert cli.main(['export', str(workdir), str(tmp_path / 'out'), '--format', 'bundle']) == 0
  said = ' '.join(capsys.readouterr().out.split())
  assert re.search(rf'{method} after tasks 1 to 3 → .*out: bundle, [\d.]+ kB; ', said)
  # The backbone is of the tests' own, which no settings hold.
  assert 'read it, given the experiment, as --file, or its method and model in code' in said
  model = tiny_experiment(method, TASKS).model
  method = tiny_method(method, TASKS)
  learner = load_bundle(tmp_path / 'out', method=method)
  np.testing.assert_array_equal(learner.predict(IMAGES), answers_of(workdir))
  assert jax.tree.structure(learner.model.params) == jax.tree.structure(model.params)


def test_a_program_of_ease_answers_as_the_run_does(ease, tmp_path, capsys):
  assert cli.main(['export', str(ease), str(tmp_path / 'out'), '--format', 'stablehlo']) == 0
  assert 'jax and safetensors run it, as its README.md says' in capsys.readouterr().out
  program = jax.export.deserialize((tmp_path / 'out' / 'predict.stablehlo').read_bytes())
  found = program.call(load_file(tmp_path / 'out' / 'arrays.safetensors'), IMAGES)
  np.testing.assert_allclose(found, answers_of(ease), rtol=1e-5, atol=1e-5)


def test_weights_are_left_out_of_bundles_alone(ease, tmp_path, capsys):
  command = [str(ease), str(tmp_path / 'out'), '--no-weights']
  assert cli.main(['export', *command, '--format', 'bundle']) == 0
  assert 'read it, given the weights of tiny and the experiment' in capsys.readouterr().out
  assert not (tmp_path / 'out' / 'weights.safetensors').exists()
  assert '--no-weights is for --format bundle, got hf-peft' in failing(capsys, *command)


def test_a_bundle_is_exported_again(runs, tmp_path):
  bundle, direct, out = (str(tmp_path / name) for name in ('bundle', 'direct', 'out'))
  assert cli.main(['export', str(runs['finetune']), bundle, '--format', 'bundle']) == 0
  assert cli.main(['export', bundle, out, '--file', str(FILE)]) == 0
  assert cli.main(['export', str(runs['finetune']), direct]) == 0
  for file in pathlib.Path(direct).iterdir():
    assert (pathlib.Path(out) / file.name).read_bytes() == file.read_bytes(), file.name


def test_no_file_that_a_bundle_names_is_run(runs, tmp_path, capsys):
  bundle = str(tmp_path / 'bundle')
  assert cli.main(['export', str(runs['finetune']), bundle, '--format', 'bundle']) == 0
  text = failing(capsys, bundle, tmp_path / 'out')
  assert 'tiny is not made by a factory of the library' in text
  assert '--file names the experiment that has the rest' in text


def test_a_bundle_holds_one_learner(runs, tmp_path, capsys):
  bundle = tmp_path / 'bundle'
  command = ['export', str(runs['finetune']), str(bundle), '--format', 'bundle', '--task', '2']
  assert cli.main(command) == 0
  text = failing(capsys, bundle, tmp_path / 'out', '--task', 1)
  assert 'holds one learner' in text and 'leave out --after-task 1' in text


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
  """A run of which settings and the card say all, and its weights as a file of their own."""
  root = tmp_path_factory.mktemp('recorded')
  sizes = {'image_size': 4, 'depth': 1, 'width': 8, 'heads': 2}
  drawn = backbones.random_weights('vit_glyphs16', **sizes)
  backbones.save_timm(root / 'weights.safetensors', drawn.backbone, drawn.params)
  card = json.loads(backbones.find_card('vit_glyphs16').path.read_text())
  card |= {'name': 'mine', 'architecture': card['architecture'] | sizes}
  card |= {'file': None, 'sha256': None}
  (root / 'mine.json').write_text(json.dumps(card))
  model = backbones.pretrained(root / 'mine.json', root / 'weights.safetensors')
  experiment = tiny_experiment()
  method = finetune(model.backbone, experiment.scenario.capacity)
  run(experiment.replace(model=model, method=method), root / 'run', silent())
  return root


def test_no_experiment_is_needed_where_settings_say_all(recorded, tmp_path):
  assert cli.main(['export', str(recorded / 'run'), str(tmp_path / 'out')]) == 0
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert '# finetune on tiny/class-incremental-2, after 2 of 2 tasks' in card
  assert 'with the weights of mine\n(sha256 ' in card


def test_a_bundle_of_what_settings_hold_needs_nothing_else(recorded, tmp_path, capsys):
  command = ['export', str(recorded / 'run'), str(tmp_path / 'out'), '--format', 'bundle']
  assert cli.main(command) == 0
  assert 'load_bundle of pecft_jax.learners read it, and need nothing' in _said(capsys)
  assert cli.main([*command[:2], str(tmp_path / 'small'), *command[3:], '--no-weights']) == 0
  assert 'read it, given the weights of mine' in _said(capsys)
  assert load_bundle(tmp_path / 'out').classes == ('0', '1', '2', '3')


def _said(capsys):
  return ' '.join(capsys.readouterr().out.split())


def _elsewhere(recorded, tmp_path):
  """The run as it would be if its weights were no longer where they were."""
  workdir = shutil.copytree(recorded / 'run', tmp_path / 'run')
  config = json.loads((workdir / 'config.json').read_text())
  config['weights'] = {'file': str(tmp_path / 'gone.safetensors')}
  (workdir / 'config.json').write_text(json.dumps(config))
  return workdir


def test_weights_that_moved_can_be_named(recorded, tmp_path, capsys):
  workdir, out = _elsewhere(recorded, tmp_path), tmp_path / 'out'
  text = failing(capsys, workdir, out)
  assert 'are no longer at' in text and '--weights names the file' in text
  assert 'no file' in failing(capsys, workdir, out, '--weights', tmp_path / 'absent.safetensors')
  weights = str(recorded / 'weights.safetensors')
  assert cli.main(['export', str(workdir), str(out), '--weights', weights]) == 0


def test_other_weights_are_refused(recorded, tmp_path, capsys):
  other = backbones.random_weights('vit_glyphs16', image_size=4, depth=1, width=8, heads=2, seed=1)
  backbones.save_timm(tmp_path / 'other.safetensors', other.backbone, other.params)
  flags = ['--weights', tmp_path / 'other.safetensors']
  assert 'is of other weights' in failing(capsys, recorded / 'run', tmp_path / 'out', *flags)


def test_a_task_without_a_checkpoint_is_refused(runs, tmp_path, capsys):
  text = failing(capsys, runs['olora'], '--task', 4, tmp_path / 'out')
  assert 'no checkpoint after task 4; there are some after [1, 2, 3]' in text


def test_an_unknown_format_is_refused(runs, tmp_path, capsys):
  text = failing(capsys, runs['olora'], '--format', 'hf_peft', tmp_path / 'out')
  assert "unknown format 'hf_peft'; did you mean 'hf-peft'?" in text


def test_a_directory_that_is_no_run_is_refused(tmp_path, capsys):
  assert 'is no work directory' in failing(capsys, tmp_path, tmp_path / 'out')


def test_a_configuration_without_settings_is_refused(tmp_path, capsys):
  (tmp_path / 'config.json').write_text('{}')
  assert 'has no settings of a method' in failing(capsys, tmp_path, tmp_path / 'out')


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
