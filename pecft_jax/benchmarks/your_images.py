"""Images of your own, one folder per class, in tasks.

    pecft run your_images --data-dir FOLDER --tasks 5
    pecft run your_images --data-dir FOLDER --backbone vit_base_patch16_224 --weights FILE

The backbone that comes along reads grey images of 16 x 16 pixels, enough to try a pipeline without
a download; photos deserve another.
"""

import pathlib
import sys
from typing import Any, Literal

from pecft_jax import data
from pecft_jax.backbones import architecture, pretrained
from pecft_jax.catalog import Repeated, choose, references_named
from pecft_jax.data import ImageFiles, Source
from pecft_jax.data.source import input_shape
from pecft_jax.data.table_files import read_table
from pecft_jax.local import local_path
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

_SMALL = 10**9  # Bytes of decoded images that are kept in memory.
_TABLES = ('.csv', '.jsonl')
_SPLITS = ('train', 'test')
_TEST_NAMES = ('test', 'val', 'validation')  # The first of these that there is.


def experiment(
  *,
  data_dir: pathlib.Path,
  scenario: Literal['class', 'task', 'domain'] = 'class',
  held_out: float = 0.2,
  convert: bool = True,
  decode: Literal['auto', 'once', 'always'] = 'auto',
  backbone: str = 'vit_glyphs16',
  weights: pathlib.Path | None = None,
  method: str = 'ease',
  peft: str | None = None,
  head: str | None = None,
  wrap: str = '',
  set: Repeated = (),
  preset: str | None = None,
  views: Literal['own', 'source'] = 'own',
  value_range: Literal['own', 'source'] = 'own',
  tasks: int = 5,
  increments: tuple[int, ...] = (),
  epochs: int = 8,
  batch_size: int = 32,
  learning_rate: float | None = None,
  rates: Repeated = (),
  lora_plus: float | None = None,
  augment: bool = True,
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  bounds: bool = False,
  single_task: bool = False,
  evaluate: Literal['seen', 'all'] = 'seen',
  seed: int = 0,
  train_per_class: int | None = None,
  test_per_class: int | None = None,
  class_order: str = 'natural',
) -> Experiment:
  """Images of your own in tasks, on a pre-trained vision transformer.

  Args:
    data_dir: a folder with one folder per class, or with train/ and test/ that are such; with
      --scenario domain, one folder per domain around those of the classes. Or a folder with
      train.npz and test.npz, or one .npz file, as pecft_jax.data.npz reads them. Or a .csv or
      .jsonl file with the columns path and label, and domain and split (train or test) if you
      like.
    scenario: new classes in each task; the same with the task known at test time; or a new
      domain in each task.
    held_out: share of each class that becomes the test set where there is none.
    convert: take images of any mode: colours become grey for a grey backbone, grey is repeated for
      one of colours, transparent parts become white, 16 bits keep their upper 8. --no-convert
      refuses them by name.
    decode: read all images once, at the start, or always when they are needed; auto reads them
      once where they take less than 1 GB decoded.
    backbone: name of a backbone card (pecft list backbones), or the path of one, which says the
      size of the images, their channels and value range.
    weights: safetensors file in timm's naming; needed where the card comes without weights.
    method: what learns (pecft list methods).
    peft: what is trained of the backbone (pecft list peft), or the directory of an adapter of
      huggingface/peft to start from; the method's own by default.
    head: what classifies features (pecft list heads); the method's own by default.
    wrap: wrappers around the method, the first innermost, as in ewc,derpp.
    set: options of these by name, as in ewc.strength=10; may be given several times.
    preset: settings of a source (pecft list presets): its optimizer and options, and on the
      command line the defaults of other flags, which go before it.
    views: of training images: this benchmark's, or the preset's.
    value_range: of images: what the backbone was trained with, or the preset's.
    tasks: number of tasks, of equally many classes.
    increments: number of classes of each task in place of --tasks, as in 4 3 3.
    epochs: passes over the data of each task.
    batch_size: of training.
    learning_rate: peak rate of Adam; the method's own by default.
    rates: peak rates of groups of parameters by pattern, as in head=1e-2 beside --learning-rate
      1e-4 for the rest; may be given several times.
    lora_plus: rate of the factors B of LoRA over that of A, such as 16 (LoRA+); 1 by default.
    augment: shift and mirror training images; --no-augment takes them as they are.
    dtype: of the backbone's computation; what is trained, and statistics, stay float32.
    bounds: also run fine-tuning with plain and masked softmax, the masked linear probe, and joint
      training, for the report; their options may be set, as in joint.epochs=20.
    single_task: also train on each task by itself, for forward transfer (`fwt`).
    evaluate: after each task, the tasks seen; or all, for zero-shot and forward transfer.
    seed: of initialisation, order of the data, and views.
    train_per_class: number of training images of each class (and domain) to use, the first ones;
      all by default.
    test_per_class: the same of test images.
    class_order: natural, seed:1993, or a list of labels; of domains with --scenario domain.
  """
  published = None if preset is None else preset_by_name(preset)
  inputs = architecture(backbone).inputs
  if inputs.kind != 'image' or inputs.shape[0] != inputs.shape[1]:
    raise ValueError(f'{backbone} reads {inputs.what} {inputs.shape}, expected square images')
  side, _, channels = inputs.shape
  ranges = value_range_of(published, value_range, channels=channels)
  model = pretrained(backbone, weights, dtype=dtype, **ranges)
  options = {'size': side, 'channels': channels, 'convert': convert}
  train, test = _sources(data_dir, scenario == 'domain', options)
  _say_what_is_converted(train)
  if test is None:
    train, test = data.held_out(train, held_out)
  if train_per_class is not None:
    train = data.first_per_class(train, train_per_class, by_domain=True)
  if test_per_class is not None:
    test = data.first_per_class(test, test_per_class, by_domain=True)
  if scenario != 'domain' and not increments:
    _check_tasks(tasks, len(train.class_names))
  count = len(train.labels) + len(test.labels)
  if decode == 'once' or (decode == 'auto' and count * side * side * channels < _SMALL):
    train, test = data.in_memory(train), data.in_memory(test)
  name = f'{train.name} ({side} x {side}{", grey" if channels == 1 else ""})'
  if scenario == 'domain':
    sequence = data.domain_incremental(train, test, order=class_order, name=name)
  else:
    split = data.class_incremental if scenario == 'class' else data.task_incremental
    sizes: dict[str, Any] = {'increments': increments} if increments else {'tasks': tasks}
    sequence = split(train, test, order=class_order, name=name, **sizes)
  named = OPTIONS if published is None else {**OPTIONS, **published.options}
  beside = references_named(bounds=bounds, single_task=single_task)
  choice = choose(method, peft=peft, head=head, wrap=wrap, set=set, options=named, beside=beside)
  shifted = data.compose(data.random_crop(max(side // 16, 1)), data.horizontal_flip())
  changed = views_of(published, views, side, shifted)
  own = lambda rate: adam(rate, clip=1.0)
  recipe = recipe_of(
    published, learning_rate, own, RATES.get(method, DEFAULT_RATE), rates, lora_plus
  )
  return Experiment(
    model,
    sequence,
    choice.build(model.backbone, sequence.capacity),
    Training(
      recipe,
      epochs=epochs,
      batch_size=batch_size,
      augment=changed if augment else None,
      evaluate=evaluate,
    ),
    seed=seed,
    references=choice.references(
      model.backbone, sequence.capacity, bounds=bounds, single_task=single_task
    ),
    labels={'peft': choice.transform, 'wrappers': list(choice.wrap)},
  )


def _sources(
  path: pathlib.Path, domains: bool, options: dict[str, Any]
) -> tuple[Source, Source | None]:
  """The images to train on and to test with; None where there are no others for that."""
  path = local_path(path)
  if path.suffix.lower() in _TABLES:
    return _listed(path, options)
  if path.suffix.lower() == '.npz':
    return _fitted(data.npz(path), options), None
  if (path / 'train.npz').is_file():
    name = path.resolve().name
    train, test = (_fitted(data.npz(path / f'{each}.npz', name), options) for each in _SPLITS)
    return train, test
  read = data.domain_folders if domains else data.image_folder
  options = {**options, 'name': path.resolve().name}
  if not (path / 'train').is_dir():
    return read(path, **options), None
  train = read(path / 'train', **options)
  tests = [path / name for name in _TEST_NAMES if (path / name).is_dir()]
  if not tests:
    return train, None
  known: dict[str, Any] = {'class_names': train.class_names}
  known |= {'domain_names': train.domain_names} if domains else {}
  return train, read(tests[0], **options, **known)


def _fitted(source: Source, options: dict[str, Any]) -> Source:
  """Images of an array, in the size and the channels that the backbone reads."""
  size, channels = options['size'], options['channels']
  shape = input_shape(source)
  if shape == (size, size, channels):
    return source
  if shape[-1] != channels and not options['convert']:
    raise ValueError(
      f'{source.name}: expected {channels} channels, got {shape[-1]}; --convert repeats grey'
    )
  return data.resize(source, size, channels)


def _listed(path: pathlib.Path, options: dict[str, Any]) -> tuple[Source, Source | None]:
  """`_sources` of a list of images."""
  names = {line.values.get('split') for line in read_table(path, (), ('split',))}
  if names == {None}:
    return data.image_list(path, **options), None
  if not names >= {'train', 'test'}:
    found = sorted(map(str, names))
    raise ValueError(f'{path}: expected train and test in the column split, got {found}')
  train, test = (data.image_list(path, split=each, **options) for each in ('train', 'test'))
  return train, test


def _say_what_is_converted(source: Source) -> None:
  if isinstance(source.inputs, ImageFiles) and source.inputs.converted:
    print(f'{source.name}: {source.inputs.converted}', file=sys.stderr)


def _check_tasks(tasks: int, classes: int) -> None:
  if tasks < 1 or classes % tasks:
    choices = [n for n in range(2, classes + 1) if classes % n == 0]
    raise ValueError(
      f'--tasks {tasks} does not divide {classes} classes: give one of {choices}, or the number of '
      'classes of each task, as in --increments 3 2 2'
    )
