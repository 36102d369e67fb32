import numpy as np
import pytest
from PIL import Image
from tiny_runs import SIZE, tiny_backbone, tiny_frozen

from pecft_jax.backbones import decoder
from pecft_jax.benchmarks import your_images
from pecft_jax.commands.files import parse_flags
from pecft_jax.commands.run import RunFlags
from pecft_jax.train import run
from pecft_jax.typing import Pretrained


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
  """All cards are the tiny backbone, which reads grey images of 4 x 4."""
  model = Pretrained(tiny_backbone(), tiny_frozen())
  monkeypatch.setattr(your_images, 'pretrained', lambda name, weights, **options: model)
  monkeypatch.setattr(your_images, 'architecture', lambda name: model.backbone)


def _fill(folder, classes=4, count=10, seed=0):
  """Classes are distinguished by the place of a bright square, on noise of all colours."""
  rng = np.random.default_rng(seed)
  for label in range(classes):
    (folder / f'klass {label} [ü]').mkdir(parents=True)
    for i in range(count):
      pixels = rng.integers(0, 60, (SIZE, SIZE, 3), np.uint8)
      pixels.reshape(-1, 3)[label] = 255
      picture = Image.fromarray(pixels).resize((6 * SIZE + i, 6 * SIZE), Image.Resampling.NEAREST)
      picture.save(folder / f'klass {label} [ü]' / f'{i}.png')
  return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return _fill(tmp_path_factory.mktemp('my images'))


def made(folder, *flags):
  args = ['--data-dir', str(folder), '--method', 'simplecil', *flags]
  values, _ = parse_flags(your_images.experiment, args, 'pecft', RunFlags)
  return your_images.experiment(**values)


def _counts(scenario):
  return [(len(task.train.rows), len(task.test.rows)) for task in scenario.tasks]


def test_a_folder_of_images_is_learned_in_tasks(folder, tmp_path):
  experiment = made(folder, '--tasks', '2')
  assert experiment.scenario.name == f'{folder.name} (4 x 4, grey)'
  assert experiment.scenario.class_names[3] == 'klass 3 [ü]'
  results = run(experiment, tmp_path / 'run')
  assert results['metrics']['average_accuracy'] >= 0.75
  assert results['status'] == 'done'


def test_arrays_in_npz_files_are_read_too(tmp_path):
  rng = np.random.default_rng(0)
  for split, count in (('train', 6), ('test', 3)):
    np.savez(
      tmp_path / f'{split}.npz',
      images=rng.integers(0, 255, (8 * count, 2 * SIZE, 2 * SIZE, 1), np.uint8),
      labels=np.tile(np.repeat(np.arange(4), count), 2),
      class_names=list('abcd'),
      domains=np.repeat([0, 1], 4 * count),
      domain_names=['photo', 'sketch'],
    )
  classes = made(tmp_path, '--tasks', '2').scenario
  assert classes.tasks[0].test.inputs[[0]].shape == (1, SIZE, SIZE, 1)
  assert _counts(classes) == [(24, 12), (24, 12)]
  few = made(tmp_path, '--scenario', 'domain', '--train-per-class', '5', '--test-per-class', '1')
  assert _counts(few.scenario) == [(20, 4), (20, 4)]
  one = made(tmp_path / 'train.npz', '--tasks', '2', '--held-out', '0.5').scenario
  assert _counts(one) == [(12, 12), (12, 12)]


def test_a_share_of_each_class_is_held_out(folder):
  assert _counts(made(folder, '--tasks', '2').scenario) == [(16, 4), (16, 4)]
  assert _counts(made(folder, '--tasks', '2', '--held-out', '0.5').scenario) == [(10, 10)] * 2


@pytest.mark.parametrize('name', ['test', 'val'])
def test_train_and_test_folders_are_used_where_there_are_such(tmp_path, name):
  _fill(tmp_path / 'flowers' / 'train', count=3)
  assert _counts(made(tmp_path / 'flowers', '--tasks', '4').scenario) == [(2, 1)] * 4
  _fill(tmp_path / 'flowers' / name, count=2, seed=1)
  scenario = made(tmp_path / 'flowers', '--tasks', '4').scenario
  assert _counts(scenario) == [(3, 2)] * 4 and scenario.name.startswith('flowers (')


@pytest.mark.parametrize('split', [False, True])
def test_a_list_of_images_is_learned(folder, tmp_path, split):
  rows = ['path,label,split' if split else 'path,label']
  for i, path in enumerate(sorted(folder.rglob('*.png'))):
    end = f',{"test" if i % 2 else "train"}' if split else ''
    rows.append(f'{path},{path.parent.name}{end}')
  (tmp_path / 'list.csv').write_text('\n'.join(rows))
  scenario = made(tmp_path / 'list.csv', '--tasks', '2').scenario
  assert _counts(scenario) == ([(10, 10)] if split else [(16, 4)]) * 2
  if split:
    (tmp_path / 'list.csv').write_text('\n'.join(rows).replace('test', 'dev'))
    with pytest.raises(ValueError, match=r"expected train and test .* got \['dev', 'train'\]"):
      made(tmp_path / 'list.csv', '--tasks', '2')


def test_each_domain_is_a_task(tmp_path):
  for name in ('photo', 'sketch', 'clip art'):
    _fill(tmp_path / name, classes=2, count=4)
  order = ['--class-order', 'sketch,photo,clip art']
  scenario = made(tmp_path, '--scenario', 'domain', *order).scenario
  assert [task.name for task in scenario.tasks] == ['sketch', 'photo', 'clip art']
  assert _counts(scenario) == [(6, 2)] * 3


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--tasks', '3'], r'--tasks 3 does not divide 4 classes: give one of \[2, 4\], or .*--increm'),
    (['--increments', '3', '2'], r'sum to 4 classes, got \[3, 2\]'),
    (['--no-convert', '--tasks', '2'], r'expected grey images .* got 40 of mode RGB'),
    (['--held-out', '1', '--tasks', '2'], r'expected a share between 0 and 1'),
  ],
)
def test_what_does_not_fit_is_refused(folder, flags, message):
  with pytest.raises(ValueError, match=message):
    made(folder, *flags)


def test_conversions_are_said(folder, capsys):
  made(folder, '--tasks', '2')
  assert capsys.readouterr().err == f'{folder.name}: 40 of mode RGB: colours become grey\n'


def test_tasks_may_differ_in_size(folder):
  tasks = made(folder, '--increments', '3', '1').scenario.tasks
  assert [len(task.classes) for task in tasks] == [3, 1]


def test_what_is_computed_does_not_depend_on_when_images_are_decoded(folder):
  read = []
  for decode in ('once', 'always', 'auto'):
    split = made(folder, '--tasks', '2', '--decode', decode).scenario.tasks[1].train
    read.append(split.inputs[split.rows])
  np.testing.assert_array_equal(read[0], read[1])
  np.testing.assert_array_equal(read[0], read[2])


def test_a_model_of_texts_is_refused(folder, monkeypatch):
  texts = decoder(vocabulary=9, length=4, width=8, depth=1, heads=2, kv_heads=2, hidden=8)
  monkeypatch.setattr(your_images, 'architecture', lambda name: texts)
  with pytest.raises(ValueError, match=r'llama reads token ids \(4,\), expected square images'):
    made(folder, '--backbone', 'llama', '--tasks', '2')
