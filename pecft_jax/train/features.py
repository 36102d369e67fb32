"""One vector for each class: what a frozen model makes of its training examples."""

import jax
import numpy as np

from pecft_jax.arguments import checked
from pecft_jax.continual.core import frozen_features
from pecft_jax.data import Source, eval_batches, first_per_class
from pecft_jax.data.scenario import Split
from pecft_jax.train.experiment import check_inputs
from pecft_jax.typing import Pretrained


@checked
def class_features(
  model: Pretrained, source: Source, *, per_class: int = 50, batch_size: int = 64
) -> np.ndarray:
  """The mean of the frozen pooled features over the first examples of each class.

  For `pecft_jax.data.similarity_orders`, which asks for training data.

  Args:
    model: the frozen backbone.
    source: examples that it reads; of every class at least one.
    per_class: as many examples of each class at most.
    batch_size: examples at a time.

  Returns:
    float64 [C, D], by label.

  Raises:
    ValueError: for examples that the backbone does not read, or a class without any.

  >>> from pecft_jax import backbones, data
  >>> model = backbones.random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  >>> train, _ = data.digits(8)
  >>> class_features(model, train, per_class=2).shape
  (10, 8)
  """
  few = first_per_class(source, per_class)
  counts = np.bincount(few.labels, minlength=len(few.class_names))
  if (missing := np.flatnonzero(counts == 0)).size:
    names = [few.class_names[label] for label in missing.tolist()]
    raise ValueError(f'{source.name!r} has no examples of {names}')
  split = Split(few.inputs, np.arange(len(few.labels)), few.labels)
  check_inputs(model.backbone, repr(source.name), split)
  features = jax.jit(lambda params, x: frozen_features(model.backbone, params, x))
  sums = np.zeros((len(counts), model.backbone.width))
  for batch in eval_batches(split, batch_size=batch_size):
    valid = np.asarray(batch.valid)
    found = np.asarray(features(model.params, batch.x), np.float64)
    np.add.at(sums, np.asarray(batch.y)[valid], found[valid])
  return sums / counts[:, None]
