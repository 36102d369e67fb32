"""Data sets, sequences of tasks over them, and batches.

train, test = digits(16)
scenario = class_incremental(train, test, tasks=5, order='seed:1993')
for t, task in enumerate(scenario.tasks):
  for batch in train_batches(task.train, batch_size=32, epochs=2, seed=fold_seed(0, t)):
    ...
  for batch in eval_batches(task.test, batch_size=64):
    ...
"""

from pecft_jax.data.augment import (
  Augmentation,
  brightness,
  compose,
  horizontal_flip,
  random_crop,
  random_resized_crop,
)
from pecft_jax.data.bundled import digits
from pecft_jax.data.counter import fold_seed
from pecft_jax.data.first_tasks import validation
from pecft_jax.data.folders import domain_folders, image_folder
from pecft_jax.data.held import held_out
from pecft_jax.data.in_arrays import arrays
from pecft_jax.data.incremental import class_incremental, domain_incremental, task_incremental
from pecft_jax.data.lists import image_list
from pecft_jax.data.npz_files import npz
from pecft_jax.data.order import class_order
from pecft_jax.data.pictures import ImageFiles
from pecft_jax.data.pipeline import eval_batches, steps_for, train_batches
from pecft_jax.data.resizing import resize
from pecft_jax.data.scenario import Probe, Scenario, Split, TaskData, joined, task_masks
from pecft_jax.data.similar_classes import SimilarityOrders, similarity_orders
from pecft_jax.data.source import (
  Source,
  check_inputs,
  first_per_class,
  in_memory,
  only_classes,
)
from pecft_jax.data.texts import text_lines, text_table
from pecft_jax.data.tfds import tfds_source
from pecft_jax.data.unlabelled import image_files

__all__ = (
  'Augmentation',
  'ImageFiles',
  'Probe',
  'Scenario',
  'SimilarityOrders',
  'Source',
  'Split',
  'TaskData',
  'arrays',
  'brightness',
  'check_inputs',
  'class_incremental',
  'class_order',
  'compose',
  'digits',
  'domain_folders',
  'domain_incremental',
  'eval_batches',
  'first_per_class',
  'fold_seed',
  'held_out',
  'horizontal_flip',
  'image_files',
  'image_folder',
  'image_list',
  'in_memory',
  'joined',
  'npz',
  'only_classes',
  'random_crop',
  'random_resized_crop',
  'resize',
  'similarity_orders',
  'steps_for',
  'task_incremental',
  'task_masks',
  'text_lines',
  'text_table',
  'tfds_source',
  'train_batches',
  'validation',
)
