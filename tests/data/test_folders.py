import pickle

import numpy as np
import pytest
from PIL import Image

from pecft_jax import data
from pecft_jax.data.scenario import data_sha256


def _put(folder, *names, side=6, mode='L', value=7):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), value).save(path)


@pytest.fixture
def pets(tmp_path):
  folder = tmp_path / 'my pets [2024] 🐕'
  _put(folder, 'dog/b.png', 'dog/a.PNG', 'dog/more/deep/c.png', value=20)
  _put(folder, 'cat x/ü [1].png', 'cat x/2 .bmp', value=10)
  return folder


def test_classes_are_the_folders_and_files_are_found_in_order(pets):
  source = data.image_folder(pets, size=4, channels=1)
  assert source.name == pets.name
  assert source.class_names == ('cat x', 'dog')
  found = [path.relative_to(pets).as_posix() for path in source.inputs.paths]
  assert found == [
    'cat x/2 .bmp',
    'cat x/ü [1].png',
    'dog/a.PNG',
    'dog/b.png',
    'dog/more/deep/c.png',
  ]
  assert source.labels.tolist() == [0, 0, 1, 1, 1] and source.labels.dtype == np.int64
  images = source.inputs[np.array([4, 0])]
  assert images.shape == (2, 4, 4, 1)
  assert images[:, 0, 0, 0].tolist() == [20, 10]


def test_hidden_files_and_those_of_other_programs_are_ignored(pets):
  (pets / 'dog' / 'Thumbs.db').write_text('x')
  (pets / 'dog' / '._b.png').write_text('x')
  (pets / '.DS_Store').write_text('x')
  (pets / 'labels.txt').write_text('x')
  (pets / '.cache').mkdir()
  (pets / 'dog' / '.thumbs').mkdir()
  (pets / 'dog' / '.thumbs' / 'b.png').write_text('x')
  assert len(data.image_folder(pets, size=4, channels=1).labels) == 5


def test_a_relative_path_reads(pets, monkeypatch):
  monkeypatch.chdir(pets / 'dog')
  source = data.image_folder('..', size=4, channels=1)
  assert source.name == pets.name and len(source.labels) == 5


def test_links_are_followed_but_not_in_circles(pets, tmp_path):
  _put(tmp_path / 'elsewhere', '1.png')
  (pets / 'fox').symlink_to(tmp_path / 'elsewhere')
  assert data.image_folder(pets, size=4, channels=1).class_names == ('cat x', 'dog', 'fox')
  (pets / 'dog' / 'loop').symlink_to(pets)
  with pytest.raises(ValueError, match='loop is a link to a folder that it lies in'):
    data.image_folder(pets, size=4, channels=1)


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    ([], r'expected one folder per class in .*pets, got none'),
    (['a.png', 'b.png'], r"got also the images \['a.png', 'b.png'\]: move them into the folder of"),
    (['cat/a.png', 'stray.png'], r"got also the images \['stray.png'\]"),
    (
      ['train/a.png', 'test/a.png'],
      r"got \['test', 'train'\]: read one of these, such as .*pets.te",
    ),
  ],
)
def test_other_layouts_are_refused(tmp_path, names, message):
  (tmp_path / 'pets').mkdir()
  _put(tmp_path / 'pets', *names)
  with pytest.raises(ValueError, match=message):
    data.image_folder(tmp_path / 'pets', size=4, channels=1)


def test_a_class_without_images_is_named(pets):
  (pets / 'fox').mkdir()
  (pets / 'fox' / 'notes.txt').write_text('x')
  with pytest.raises(ValueError, match=r'fox holds no images \(files ending in .avif .bmp'):
    data.image_folder(pets, size=4, channels=1)


def test_photos_of_a_format_that_is_not_read_are_not_lost_silently(pets):
  (pets / 'dog' / 'IMG_1.HEIC').write_text('x')
  with pytest.raises(ValueError, match=r"dog has images of formats that are not .*'IMG_1.HEIC'"):
    data.image_folder(pets, size=4, channels=1)


def test_a_folder_that_is_not_there_or_a_file_is_named(pets, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no folder .*nowhere'):
    data.image_folder(tmp_path / 'nowhere', size=4)
  with pytest.raises(ValueError, match=r'expected a folder, got the file .*a.PNG'):
    data.image_folder(pets / 'dog' / 'a.PNG', size=4)


def test_files_are_looked_at_before_a_run(pets):
  (pets / 'dog' / 'z.png').write_text('no image')
  _put(pets, 'dog/colour.png', mode='RGB', value=(1, 2, 3))
  with pytest.raises(ValueError, match=r'z.png cannot be read as an image: its format is unknown'):
    data.image_folder(pets, size=4, channels=1)
  source = data.image_folder(pets, size=4, channels=1, check=False)
  assert len(source.inputs[np.array([0, 1])]) == 2
  with pytest.raises(ValueError, match=r'colour.png is RGB; convert=True'):
    source.inputs[np.array([source.inputs.paths.index(pets / 'dog' / 'colour.png')])]


def test_a_test_set_takes_the_classes_of_its_training_set(pets, tmp_path):
  train = data.image_folder(pets, size=4, channels=1)
  _put(tmp_path / 'test', 'dog/1.png')
  test = data.image_folder(tmp_path / 'test', size=4, channels=1, class_names=train.class_names)
  assert test.labels.tolist() == [1] and test.class_names == train.class_names
  _put(tmp_path / 'test', 'dogs/1.png')
  with pytest.raises(ValueError, match=r"unknown class 'dogs'; did you mean 'dog'"):
    data.image_folder(tmp_path / 'test', size=4, channels=1, class_names=train.class_names)


def test_domains_are_the_outer_folders(tmp_path):
  _put(tmp_path / 'styles', 'photo/dog/1.png', 'photo/cat/1.png', 'sketch/dog/1.png')
  source = data.domain_folders(tmp_path / 'styles', size=4, channels=1)
  assert source.domain_names == ('photo', 'sketch') and source.class_names == ('cat', 'dog')
  assert source.domains.tolist() == [0, 0, 1] and source.labels.tolist() == [0, 1, 1]
  scenario = data.domain_incremental(source, source)
  assert [task.name for task in scenario.tasks] == ['photo', 'sketch']


def test_batches_of_files_are_those_of_the_same_images_in_memory(pets):
  files = data.image_folder(pets, size=4, channels=1)
  read = []
  for source in (files, data.in_memory(files)):
    scenario = data.class_incremental(source, source, tasks=2)
    split = scenario.tasks[1].train
    batches = data.train_batches(split, batch_size=2, epochs=2, seed=1)
    read.append([batch.x for batch in batches])
  np.testing.assert_array_equal(*read)


def test_the_digest_of_files_follows_what_is_in_them(pets):
  digest = lambda: data_sha256(
    data.class_incremental(*2 * [data.image_folder(pets, size=4, channels=1)], tasks=2)
  )
  before = digest()
  assert digest() == before
  _put(pets, 'dog/b.png', value=21)
  assert digest() != before


def test_a_source_of_files_goes_to_other_processes(pets):
  source = pickle.loads(pickle.dumps(data.image_folder(pets, size=4, channels=1)))
  assert source.inputs[np.array([0])].shape == (1, 4, 4, 1)
