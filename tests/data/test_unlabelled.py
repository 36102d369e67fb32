import numpy as np
import pytest
from PIL import Image

from pecft_jax import data


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'holiday').mkdir()
  for i, name in enumerate(['b.png', 'holiday/1 [x].png', 'a', 'notes.txt']):
    Image.new('L', (6, 6), i).save(tmp_path / name, 'PNG')
  return tmp_path


def test_files_and_folders_are_read_in_the_order_given(folder, monkeypatch):
  monkeypatch.chdir(folder)
  files = data.image_files(['a', folder / 'holiday', 'b.png'], size=4, channels=1)
  assert [path.name for path in files.paths] == ['a', '1 [x].png', 'b.png']
  assert files[np.array([2, 0])][:, 0, 0, 0].tolist() == [0, 2]


def test_a_folder_gives_all_images_in_it(folder):
  files = data.image_files(folder, size=4, channels=1)
  assert [path.relative_to(folder).as_posix() for path in files.paths] == [
    'b.png', 'holiday/1 [x].png',
  ]  # fmt: skip


def test_what_is_not_there_or_no_image_is_named(folder):
  with pytest.raises(FileNotFoundError, match=r'no file or folder .*gone'):
    data.image_files(folder / 'gone', size=4)
  with pytest.raises(ValueError, match='got none'):
    data.image_files([], size=4)
  (folder / 'c').write_text('text')
  with pytest.raises(ValueError, match=r'c cannot be read as an image: its format is unknown'):
    data.image_files(folder / 'c', size=4)
  (folder / 'empty').mkdir()
  with pytest.raises(ValueError, match=r'empty holds no images'):
    data.image_files(folder / 'empty', size=4)
  with pytest.raises(ValueError, match=r'a is L; convert=True takes them'):
    data.image_files(folder / 'a', size=4)
