"""Scikit-learn's bundled handwritten digits: a data set that needs no download.

1,797 images of 8 x 8 pixels, the test part of "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak, 1998, UCI repository).
"""

import numpy as np

from pecft_jax.arguments import checked
from pecft_jax.data.in_arrays import arrays
from pecft_jax.data.resizing import centre_square
from pecft_jax.data.source import Source, select_rows

_TEST_EVERY = 5


@checked
def digits(image_size: int = 16) -> tuple[Source, Source]:
  """The digits as (train, test), images uint8 [N, image_size, image_size, 1].

  The split is fixed and stratified: in each class, in the order of the file,
  every fifth image goes to the test set. Ink is scaled from 0..16 to 0..255.

  Args:
    image_size: side of the images in pixels; those of the file have 8.

  >>> train, test = digits()
  >>> len(train.class_names)
  10
  """
  # Imported here: scikit-learn takes a second to load, and few runs need it.
  from sklearn.datasets import load_digits

  flat, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
  ink = np.round(flat.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
  images = np.stack([centre_square(image, image_size) for image in ink])
  source = arrays('digits', images, labels, [str(d) for d in range(10)])
  is_test = np.zeros(len(images), bool)
  for digit in range(10):
    is_test[np.flatnonzero(labels == digit)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
  train, test = (select_rows(source, np.flatnonzero(part)) for part in (~is_test, is_test))
  return train, test
