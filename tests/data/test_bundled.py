import numpy as np

from pecft_jax.data import digits


def test_the_split_is_fixed_and_stratified():
  train, test = digits(8)
  assert (len(train.labels), len(test.labels)) == (1442, 355)
  share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
  assert (share > 0.19).all() and (share <= 0.2).all()
  assert train.labels[:5].tolist() == [0, 1, 2, 3, 4]


def test_train_and_test_share_no_row():
  train, test = digits(8)
  assert not set(train.inputs.rows.tolist()) & set(test.inputs.rows.tolist())


def test_images_are_grey_and_of_the_size_asked_for():
  train, _ = digits(12)
  images = train.inputs[np.arange(50)]
  assert images.shape == (50, 12, 12, 1)
  assert images.dtype == np.uint8
  assert images.max() > 200


def test_ink_is_scaled_to_bytes():
  train, _ = digits(8)
  assert train.inputs[np.arange(100)].max() == 255
  # The first image's first row has the ink 0 0 5 13 9 1 0 0.
  expected = [0, 0, 80, 207, 143, 16, 0, 0]
  assert train.inputs[np.array([0])][0, 0, :, 0].tolist() == expected
