import zipfile

import numpy as np
import pytest

from pecft_jax.data import npz
from pecft_jax.data.npz_files import npz_inputs


@pytest.fixture
def fields():
  rng = np.random.default_rng(0)
  return {
    'images': rng.integers(0, 256, (6, 4, 4, 3), np.uint8),
    'labels': np.array([0, 1, 0, 1, 0, 1], np.uint8),
    'class_names': np.array(['cat', 'dog']),
  }


def test_a_file_reads_back(tmp_path, fields):
  np.savez(tmp_path / 'pets.npz', **fields, source='ignored')
  source = npz(tmp_path / 'pets.npz')
  assert source.name == 'pets'
  assert source.class_names == ('cat', 'dog')
  np.testing.assert_array_equal(source.inputs[np.array([4, 1])], fields['images'][[4, 1]])
  np.testing.assert_array_equal(source.labels, fields['labels'])
  assert source.domains is None


def test_domains_are_read_where_present(tmp_path, fields):
  np.savez(tmp_path / 'a.npz', **fields, domains=[0, 0, 1, 1, 0, 1], domain_names=['day', 'night'])
  source = npz(str(tmp_path / 'a.npz'), name='pets')
  assert (source.name, source.domain_names) == ('pets', ('day', 'night'))


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'nowhere\.npz; expected an \.npz with the keys'):
    npz(tmp_path / 'nowhere.npz')


@pytest.mark.parametrize('compressed', [False, True])
@pytest.mark.parametrize('keep', [0, 2, 40, 400, -30])
def test_a_truncated_file_is_named(tmp_path, fields, keep, compressed):
  path = tmp_path / 'cut.npz'
  (np.savez_compressed if compressed else np.savez)(path, **fields)
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r'cut\.npz is truncated or not an \.npz file'):
    npz(path)


def test_a_damaged_file_is_named(tmp_path, fields):
  path = tmp_path / 'bad.npz'
  np.savez(path, **fields)
  data = bytearray(path.read_bytes())
  at = data.find(fields['images'].tobytes())
  data[at + 5] ^= 0xFF
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r"bad\.npz: the entry 'images' cannot be read: Bad CRC-32"):
    npz(path)


def test_foreign_files_are_named(tmp_path, fields):
  (tmp_path / 'text.npz').write_text('these are not arrays')
  np.save(tmp_path / 'lone.npy', fields['images'])
  np.savez(tmp_path / 'keys.npz', x=fields['images'], labels=fields['labels'])
  np.savez(tmp_path / 'objects.npz', **fields | {'class_names': np.array([{}, 'dog'], object)})
  with pytest.raises(ValueError, match=r'text\.npz is truncated or not an'):
    npz(tmp_path / 'text.npz')
  with pytest.raises(ValueError, match=r'lone\.npy is truncated or not an'):
    npz(tmp_path / 'lone.npy')
  with pytest.raises(ValueError, match=r"keys\.npz.*got \['x', 'labels'\]; missing: \['images', "):
    npz(tmp_path / 'keys.npz')
  with pytest.raises(ValueError, match=r"objects\.npz: the entry 'class_names' .*Object arrays"):
    npz(tmp_path / 'objects.npz')


def test_arrays_that_do_not_fit_name_the_file(tmp_path, fields):
  np.savez(tmp_path / 'short.npz', **fields | {'labels': fields['labels'][:4]})
  with pytest.raises(ValueError, match=r'short\.npz: .*expected 6 labels'):
    npz(tmp_path / 'short.npz')


def test_names_of_bytes_are_read_as_text(tmp_path, fields):
  names = [name.encode() for name in fields['class_names']]
  np.savez(tmp_path / 'bytes.npz', **fields | {'class_names': np.array(names)})
  assert npz(tmp_path / 'bytes.npz').class_names == tuple(str(n) for n in fields['class_names'])


def test_a_key_that_comes_twice_is_refused(tmp_path, fields):
  path = tmp_path / 'twice.npz'
  np.savez(path, **fields)
  with zipfile.ZipFile(path, 'a') as archive, pytest.warns(UserWarning, match='Duplicate name'):
    archive.writestr('labels.npy', archive.read('labels.npy'))
  with pytest.raises(ValueError, match=r"twice.npz holds \['labels'\] twice"):
    npz(path)


def test_images_are_read_without_labels(tmp_path):
  images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
  np.savez(tmp_path / 'a.npz', images=images, other=[1])
  np.testing.assert_array_equal(npz_inputs(tmp_path / 'a.npz'), images)
  np.savez(tmp_path / 'b.npz', pictures=images)
  with pytest.raises(ValueError, match=r"expected the keys \('images',\), got \['pictures'\]"):
    npz_inputs(tmp_path / 'b.npz')
  np.savez(tmp_path / 'c.npz', images=np.float32(1))
  with pytest.raises(ValueError, match='expected uint8 images, got float32'):
    npz_inputs(tmp_path / 'c.npz')
