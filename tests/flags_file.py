"""An experiment file with the flags of the benchmarks, on a tiny model."""

from typing import Literal

from tiny_runs import tiny_world

from pecft_jax.catalog import Repeated, choose
from pecft_jax.presets import preset as preset_by_name
from pecft_jax.presets import recipe_of, views_of
from pecft_jax.train import Experiment, Training, adam


def experiment(
  *,
  method: str = 'finetune',
  peft: str | None = None,
  wrap: str = '',
  set: Repeated = (),
  preset: str | None = None,
  views: Literal['own', 'source'] = 'own',
  value_range: Literal['own', 'source'] = 'own',
  tasks: int = 2,
  epochs: int = 2,
  batch_size: int = 4,
  eval_batch_size: int = 5,
  learning_rate: float | None = None,
  accumulate: int = 1,
  evaluate: Literal['seen', 'all'] = 'seen',
  evaluate_every: int | None = None,
  cache_queries: bool = False,
  bounds: bool = False,
  seed: int = 0,
) -> Experiment:
  """A few small tasks.

  Args:
    method: what learns.
    peft: what is trained of the backbone.
    wrap: wrappers around the method.
    set: options of these.
    preset: settings of a source.
    views: of training images.
    value_range: is ignored, the model has one.
    tasks: of two classes each.
    epochs: passes over each task.
    batch_size: of training.
    eval_batch_size: of all else.
    learning_rate: peak rate of Adam.
    accumulate: batches for each update.
    evaluate: the tasks seen, or all.
    evaluate_every: steps between evaluations.
    cache_queries: compute frozen queries once per example.
    bounds: also run the lower and the upper bound.
    seed: of initialisation and order.
  """
  del value_range
  if not 1 <= tasks <= 3:
    raise ValueError(f'tasks must be 1 to 3, got {tasks}')
  world = tiny_world('adapters', tasks)
  published = None if preset is None else preset_by_name(preset)
  options = {} if published is None else published.options
  choice = choose(method, peft=peft, wrap=wrap, set=set, options=options)
  own = lambda rate: adam(rate, accumulate=accumulate)
  training = Training(
    recipe_of(published, learning_rate, own, 1e-2),
    epochs=epochs,
    batch_size=batch_size,
    eval_batch_size=eval_batch_size,
    augment=views_of(published, views, world.model.backbone.inputs.shape[0], None),
    evaluate=evaluate,
    evaluate_every=evaluate_every,
    cache_queries=cache_queries,
  )
  built = choice.build(world.model.backbone, world.capacity)
  bounding = choice.references(world.model.backbone, world.capacity, bounds=bounds)
  return Experiment(world.model, world.scenario, built, training, seed=seed, references=bounding)
