"""Handwritten digits, two classes at a time, on a backbone that saw only letters.

    pecft run split_digits
    pecft run split_digits --method l2p

Needs no download: scikit-learn brings the digits, this library the backbone.
"""

from typing import Any, Literal

from pecft_jax import data
from pecft_jax.backbones import pretrained
from pecft_jax.catalog import Repeated, choose
from pecft_jax.presets import asked
from pecft_jax.presets import preset as preset_by_name
from pecft_jax.train import Experiment, Training, adam

RATES = {'l2p': 1e-2}
DEFAULT_RATE = 2e-3

OPTIONS = {
  'l2p': {'pool': 10, 'length': 2, 'top_k': 4, 'pull': 0.1},
  'ranpac': {'projection': 1000},
  'adaptformer': {'width': 16},
  'er': {'size': 100},
  'derpp': {'size': 100},
}


def experiment(
  *,
  method: str = 'ease',
  peft: str | None = None,
  wrap: str = '',
  set: Repeated = (),
  preset: str | None = None,
  views: Literal['own', 'source'] = 'own',
  value_range: Literal['own', 'source'] = 'own',
  tasks: int = 5,
  epochs: int = 8,
  batch_size: int = 32,
  learning_rate: float | None = None,
  bounds: bool = True,
  alone: bool = False,
  evaluate: Literal['seen', 'all'] = 'seen',
  seed: int = 0,
  class_order: str = 'natural',
) -> Experiment:
  """Split digits: 10 classes in 5 tasks, on a small ViT pre-trained on rendered letters.

  Args:
    method: what learns (pecft list methods).
    peft: what is trained of the backbone (pecft list peft); the method's own by default.
    wrap: wrappers around the method, the first innermost, as in ewc,derpp.
    set: options of these by name, as in ewc.strength=10; may be given several times.
    preset: settings of a source (pecft list presets): its optimizer and options, and on the
      command line the defaults of other flags, which go before it.
    views: of training images: this benchmark's, or the preset's.
    value_range: of images: what the backbone was trained with, or the preset's.
    tasks: number of tasks, of equally many classes.
    epochs: passes over the data of each task.
    batch_size: of training.
    learning_rate: peak rate of Adam; the method's own by default.
    bounds: also run sequential fine-tuning and joint training, the lower and the upper bound.
    alone: also train on each task alone, for forward transfer (`fwt`).
    evaluate: after each task, the tasks seen; or all, for zero-shot and forward transfer.
    seed: of initialisation, order of the data, and views.
    class_order: natural, seed:1993, or a list of digits.
  """
  published = None if preset is None else preset_by_name(preset)
  ranges: dict[str, Any] = {}
  if value_range == 'source' and (found := asked(published, '--value-range').value_range):
    ranges = found.of(channels=1)
  model = pretrained('vit_glyphs16', **ranges)
  train, test = data.digits(image_size=model.backbone.inputs.shape[0])
  scenario = data.class_incremental(
    train, test, tasks=tasks, order=class_order, name='split_digits'
  )
  options = OPTIONS if published is None else {**OPTIONS, **published.options}
  choice = choose(method, peft=peft, wrap=wrap, set=set, options=options)
  build = lambda choice: choice.build(model.backbone, scenario.capacity)
  augment = data.random_crop(1)
  if views == 'source':
    source = asked(published, '--views').views
    augment = source and source(model.backbone.inputs.shape[0])
  rate = learning_rate if learning_rate is not None else RATES.get(method, DEFAULT_RATE)
  recipe = adam(rate, clip=1.0)
  if published is not None and published.recipe and published.learning_rate:
    recipe = published.recipe(learning_rate or published.learning_rate)
  return Experiment(
    model,
    scenario,
    build(choice),
    Training(
      recipe,
      epochs=epochs,
      batch_size=batch_size,
      augment=augment,
      evaluate=evaluate,
    ),
    seed=seed,
    references={
      name: build(choice.plain(name))
      for name, wanted in (('finetune', bounds), ('joint', bounds), ('alone', alone))
      if wanted and name != method
    },
    labels={'peft': choice.transform, 'wrappers': list(choice.wrap)},
  )
