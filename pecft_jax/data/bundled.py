"""Scikit-learn's bundled handwritten digits: a data set that needs no download.

1,797 images of 8 x 8 pixels, the test part of "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak, 1998, UCI repository).
"""

import gzip
import importlib.util
import pathlib

import numpy as np

from pecft_jax.arguments import checked
from pecft_jax.data.in_arrays import arrays
from pecft_jax.data.resizing import centre_square
from pecft_jax.data.source import Source, select_rows

_TEST_EVERY = 5


def _read() -> tuple[np.ndarray, np.ndarray]:
  """The file that comes with scikit-learn: ink [N, 64] in 0..16, and labels [N].

  Read without importing the package, which takes seconds, where the file is at its usual place.
  """
  found = importlib.util.find_spec('sklearn')
  for folder in (found and found.submodule_search_locations) or ():
    path = pathlib.Path(folder, 'datasets', 'data', 'digits.csv.gz')
    if path.is_file():
      with gzip.open(path) as file:
        table = np.loadtxt(file, delimiter=',')
      return table[:, :-1], table[:, -1].astype(np.int64)
  from sklearn.datasets import load_digits

  flat, labels = load_digits(return_X_y=True)
  return np.asarray(flat), np.asarray(labels)


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
  flat, labels = _read()
  ink = np.round(flat.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
  images = np.stack([centre_square(image, image_size) for image in ink])
  source = arrays('digits', images, labels, [str(d) for d in range(10)])
  is_test = np.zeros(len(images), bool)
  for digit in range(10):
    is_test[np.flatnonzero(labels == digit)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
  train, test = (select_rows(source, np.flatnonzero(part)) for part in (~is_test, is_test))
  return train, test
