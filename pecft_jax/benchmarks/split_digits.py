"""Handwritten digits, two classes at a time, on a backbone that saw only letters.

    pecft run split_digits
    pecft run split_digits --method l2p

Needs no download: the digits come with scikit-learn, the backbone with this library.
"""

from typing import Literal

from pecft_jax import data
from pecft_jax.backbones import pretrained
from pecft_jax.catalog import Repeated, choose, references_named
from pecft_jax.presets import preset as preset_by_name
from pecft_jax.presets import recipe_of, value_range_of, views_of
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
  head: str | None = None,
  wrap: str = '',
  set: Repeated = (),
  preset: str | None = None,
  views: Literal['own', 'source'] = 'own',
  value_range: Literal['own', 'source'] = 'own',
  tasks: int = 5,
  epochs: int = 8,
  batch_size: int = 32,
  learning_rate: float | None = None,
  rates: Repeated = (),
  lora_plus: float | None = None,
  bounds: bool = True,
  single_task: bool = False,
  evaluate: Literal['seen', 'all'] = 'seen',
  seed: int = 0,
  class_order: str = 'natural',
) -> Experiment:
  """Split digits: 10 classes in 5 tasks, on a small ViT pre-trained on rendered letters.

  Args:
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
    bounds: also run fine-tuning with plain and masked softmax, the masked linear probe, and joint
      training, for the report; their options may be set, as in joint.epochs=20.
    single_task: also train on each task by itself, for forward transfer (`fwt`).
    evaluate: after each task, the tasks seen; or all, for zero-shot and forward transfer.
    seed: of initialisation, order of the data, and views.
    class_order: natural, seed:1993, or a list of digits.
  """
  published = None if preset is None else preset_by_name(preset)
  ranges = value_range_of(published, value_range, channels=1)
  model = pretrained('vit_glyphs16', **ranges)
  train, test = data.digits(image_size=model.backbone.inputs.shape[0])
  scenario = data.class_incremental(
    train, test, tasks=tasks, order=class_order, name='split_digits'
  )
  options = OPTIONS if published is None else {**OPTIONS, **published.options}
  beside = references_named(bounds=bounds, single_task=single_task)
  choice = choose(method, peft=peft, head=head, wrap=wrap, set=set, options=options, beside=beside)
  augment = views_of(published, views, model.backbone.inputs.shape[0], data.random_crop(1))
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
      augment=augment,
      evaluate=evaluate,
    ),
    seed=seed,
    references=choice.references(
      model.backbone, scenario.capacity, bounds=bounds, single_task=single_task
    ),
    labels={'peft': choice.transform, 'wrappers': list(choice.wrap)},
  )
