"""CIFAR-100, class-incrementally, on a pre-trained vision transformer.

pecft run split_cifar100 --data-dir DIR --weights FILE --method ease
"""

import pathlib
from typing import Literal

from pecft_jax import data
from pecft_jax.backbones import pretrained
from pecft_jax.catalog import Repeated, choose, references_named
from pecft_jax.presets import preset as preset_by_name
from pecft_jax.presets import recipe_of, value_range_of, views_of
from pecft_jax.train import Experiment, Training, adam

# Peak rates of Adam with a cosine over each task at batch 128, for a ViT of width 192. EASE's was
# chosen among four on a fifth of the training images that was held out, the others on the first
# task alone; published ones are for ViT-B/16 at 224 x 224.
RATES = {'l2p': 1e-2, 'ranpac': 1e-3, 'ease': 1e-2}
DEFAULT_RATE = 2e-3

OPTIONS = {
  # As in LAMDA-PILOT, except for fewer tokens: an image has 16 here, not 196.
  'l2p': {'pool': 10, 'length': 2, 'top_k': 5, 'pull': 0.1},
  'ranpac': {'projection': 2000},
  'adaptformer': {'width': 64},
}


def experiment(
  *,
  data_dir: pathlib.Path | None = None,
  backbone: str = 'vit_32_p8_tiny_imagenet',
  weights: pathlib.Path | None = None,
  method: str = 'ease',
  peft: str | None = None,
  head: str | None = None,
  wrap: str = '',
  set: Repeated = (),
  preset: str | None = None,
  views: Literal['own', 'source'] = 'own',
  value_range: Literal['own', 'source'] = 'own',
  tasks: int = 10,
  epochs: int = 5,
  batch_size: int = 128,
  learning_rate: float | None = None,
  rates: Repeated = (),
  lora_plus: float | None = None,
  augment: bool = True,
  cache_queries: bool = False,
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  bounds: bool = False,
  single_task: bool = False,
  seed: int = 0,
  train_per_class: int | None = None,
  test_per_class: int | None = None,
  class_order: str = 'natural',
) -> Experiment:
  """Split CIFAR-100 on a frozen pre-trained backbone.

  Args:
    data_dir: folder with cifar100_train.npz and cifar100_test.npz; TFDS's cifar100 by default.
    backbone: name of a backbone card (pecft list backbones), or the path of one.
    weights: safetensors file in timm's naming; needed where the card comes without weights.
    method: what learns (pecft list methods).
    peft: what is trained of the backbone (pecft list peft), or the directory of an adapter of
      huggingface/peft to start from; the method's own by default.
    head: what classifies features (pecft list heads); the method's own by default.
    wrap: wrappers around the method, the first innermost, as in ewc,derpp.
    set: options of these by name, as in ewc.strength=10; may be given several times.
    preset: settings of a source (pecft list presets): its optimizer and options, and on the command
      line the defaults of other flags, which override it.
    views: of training images: this benchmark's, or the preset's.
    value_range: of images: what the backbone was trained with, or the preset's.
    tasks: number of tasks, of equally many classes.
    epochs: passes over the data of each task.
    batch_size: of training.
    learning_rate: peak rate of Adam; the method's own by default.
    rates: peak rates of groups of parameters by pattern, as in head=1e-2 beside --learning-rate
      1e-4 for the rest; may be given several times.
    lora_plus: rate of the factors B of LoRA over that of A, such as 16 (LoRA+); 1 by default.
    augment: change training images; --no-augment takes them as they are.
    cache_queries: compute frozen queries once per example; needs --no-augment.
    dtype: of the backbone's computation; what is trained, and statistics, stay float32.
    bounds: also run fine-tuning with plain and masked softmax, the masked linear probe, and joint
      training, for the report; their options may be set, as in joint.epochs=20.
    single_task: also train on each task by itself, for forward transfer (`fwt`).
    seed: of initialisation, order of the data, and views.
    train_per_class: number of training images of each class to use, the first ones; all by default.
    test_per_class: the same of test images.
    class_order: natural, seed:1993, or a list of labels.
  """
  if data_dir is None:
    train, test = (
      data.in_memory(data.tfds_source('cifar100', split)) for split in ('train', 'test')
    )
  else:
    train, test = (data.npz(data_dir / f'cifar100_{split}.npz') for split in ('train', 'test'))
  if train_per_class is not None:
    train = data.first_per_class(train, train_per_class)
  if test_per_class is not None:
    test = data.first_per_class(test, test_per_class)
  scenario = data.class_incremental(
    train, test, tasks=tasks, order=class_order, name='split_cifar100'
  )
  published = None if preset is None else preset_by_name(preset)
  ranges = value_range_of(published, value_range, channels=3)
  model = pretrained(backbone, weights, dtype=dtype, **ranges)
  side = model.backbone.inputs.shape[0]
  if side != 32:
    scenario = data.class_incremental(
      data.resize(train, side), data.resize(test, side), tasks=tasks, order=class_order,
      name=f'split_cifar100_{side}',
    )  # fmt: skip
  options = OPTIONS if published is None else {**OPTIONS, **published.options}
  beside = references_named(bounds=bounds, single_task=single_task)
  choice = choose(method, peft=peft, head=head, wrap=wrap, set=set, options=options, beside=beside)
  shifted = data.compose(data.random_crop(4 * side // 32), data.horizontal_flip())
  changed = views_of(published, views, side, shifted)
  own = lambda rate: adam(rate, clip=1.0)
  recipe = recipe_of(
    published, learning_rate, own, RATES.get(method, DEFAULT_RATE), rates, lora_plus
  )
  return Experiment(
    model,
    scenario,
    choice.build(model.backbone, scenario.capacity),
    Training(
      recipe,
      epochs=epochs,
      batch_size=batch_size,
      augment=changed if augment else None,
      cache_queries=cache_queries,
    ),
    seed=seed,
    references=choice.references(
      model.backbone, scenario.capacity, bounds=bounds, single_task=single_task
    ),
    labels={'peft': choice.transform, 'wrappers': list(choice.wrap)},
  )
