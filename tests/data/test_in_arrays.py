import numpy as np
import pytest

from pecft_jax.data import arrays

IMAGES = np.zeros((4, 2, 2, 3), np.uint8)
LABELS = [0, 1, 2, 1]


def test_names_default_to_numbers_and_labels_are_int64():
  source = arrays('toy', IMAGES, np.array(LABELS, np.uint8))
  assert source.class_names == ('0', '1', '2')
  assert source.labels.dtype == np.int64
  assert source.domains is None


def test_domains_are_kept():
  source = arrays('toy', IMAGES, LABELS, domains=[0, 0, 1, 1], domain_names=['photo', 'sketch'])
  assert source.domain_names == ('photo', 'sketch')
  np.testing.assert_array_equal(source.domains, [0, 0, 1, 1])


def test_token_ids_stay_as_they_are():
  ids = np.array([[3, 1, -1], [2, 2, 5], [0, -1, -1], [7, 7, 7]], np.int32)
  source = arrays('toy', ids, LABELS)
  assert source.inputs.dtype == np.int32
  np.testing.assert_array_equal(source.inputs, ids)


@pytest.mark.parametrize(
  ('inputs', 'labels', 'options', 'message'),
  [
    (IMAGES.astype(np.float32), LABELS, {}, 'expected uint8 images, got float32'),
    (IMAGES[..., 0], LABELS, {}, r'\[N, H, W, C\], got \(4, 2, 2\)'),
    (np.zeros((4, 3), np.int64), LABELS, {}, 'got int64; token ids are int32'),
    (IMAGES.astype(np.int32), LABELS, {}, r'token ids of shape \[N, T\], got \(4, 2, 2, 3\)'),
    (IMAGES, LABELS[:3], {}, r'expected 4 labels, one per example, got \(3,\)'),
    (IMAGES, [0.0, 1.0, 2.0, 1.0], {}, 'expected integer labels, got float64'),
    (IMAGES, [0, 1, 2, 3], {'class_names': ['a', 'b', 'c']}, r'expected labels in 0..2, got \[3\]'),
    (IMAGES, [0, -1, 2, 1], {}, r'expected labels in 0..2, got \[-1\]'),
    (IMAGES, LABELS, {'domains': [0, 1]}, 'expected 4 domains'),
    (
      np.zeros((4, 3, 8, 8), np.uint8),
      LABELS,
      {},
      r'channels first; give inputs.transpose',
    ),
    (np.zeros((4, 1, 8, 8), np.uint8), LABELS, {}, r'got \(4, 1, 8, 8\), which has its channels'),
    (IMAGES.astype(np.uint16), LABELS, {}, 'expected uint8 images, got uint16'),
    (IMAGES, LABELS, {'class_names': 'abc'}, 'a list of names of the labels, in order, got str'),
    (IMAGES, LABELS, {'class_names': {'a', 'b', 'c'}}, 'in order, got set'),
    (IMAGES, LABELS, {'class_names': [['a'], ['b'], ['c']]}, 'text for the name of a label'),
    (IMAGES, LABELS, {'class_names': [b'a', b'b', b'\xff']}, r"name b'\\xff' is not UTF-8"),
    (IMAGES, LABELS, {'domain_names': ['photo']}, 'expected domains with the domain_names'),
  ],
)
def test_arrays_that_do_not_fit_are_refused(inputs, labels, options, message):
  with pytest.raises(ValueError, match=message):
    arrays('toy', inputs, labels, **options)


def test_names_may_be_bytes_of_text():
  names = np.array(['chien', 'chât', 'ours'])
  as_bytes = [name.encode() for name in names.tolist()]
  assert arrays('toy', IMAGES, LABELS, as_bytes).class_names == tuple(names)
  assert arrays('toy', IMAGES, LABELS, names).class_names == tuple(names)


@pytest.mark.parametrize('shape', [(8, 8, 3), (3, 3, 3), (1, 2, 8), (4, 4, 12), (32, 3, 3)])
def test_images_with_channels_last_pass(shape):
  assert arrays('toy', np.zeros((4, *shape), np.uint8), LABELS).inputs.shape == (4, *shape)
