"""The parts of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from pecft_jax.arguments import check_fields
from pecft_jax.data import Augmentation, Scenario, Split
from pecft_jax.data.scenario import data_sha256
from pecft_jax.devices.digest import tree_sha256
from pecft_jax.devices.finite_leaves import not_finite_in
from pecft_jax.devices.rules import Rule
from pecft_jax.recipes import Recipe
from pecft_jax.settings import settings_of
from pecft_jax.typing import Backbone, ContinualMethod, Params, Pretrained, WeightsIdentity

_ROWS = 1 << 14  # Examples whose ids are checked at once.


class Training(NamedTuple):
  """How each task is trained.

  Attributes:
    recipe: the optimizer, reset at each task.
    epochs: passes over a task's training data.
    batch_size: of training, over all devices.
    eval_batch_size: of all other passes.
    augment: views of training images; None trains on the images as they are.
    log_every: steps between rows of the log.
    cache_queries: compute the frozen features of each training example once per
      task, for methods and references that read them, of which there must be one. Possible
      only without augmentation.
    evaluate: 'seen': after each task, it and those before it; 'all': all tasks,
      and once before the first, for forward and zero-shot transfer. Answers are
      chosen among the classes seen and those of the test set's own task.
    evaluate_every: also evaluate after so many steps within a task.
    restart: whether each task starts with a fresh optimizer.
  """

  recipe: Recipe
  epochs: int
  batch_size: int = 128
  eval_batch_size: int = 256
  augment: Augmentation | None = None
  log_every: int = 20
  cache_queries: bool = False
  evaluate: Literal['seen', 'all'] = 'seen'
  evaluate_every: int | None = None
  restart: bool = True


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Experiment:
  """A method, what it learns, and how: all that `run` needs.

  Attributes:
    model: the frozen backbone with its weights; `Pretrained(backbone, params)`
      makes one by hand.
    scenario: the sequence of tasks.
    method: the method to run, built on the same backbone.
    training: how each task is trained.
    seed: of initialisation, order and views.
    references: methods run beside it for comparison, by name; `finetune`, `masked_finetune`,
      `masked_probe` and `joint` are the bounds that the report knows; of `joint` intransigence is
      measured, of `single_task` forward transfer.
    identity: further entries of the run's identity, as JSON, over those of the
      model and the scenario: runs are compared where all entries are equal.
    labels: free entries of results.json, for tables; `peft` and `wrappers` are there from the
      method's settings.
    rules: sharding rules of its own, as in `Layout`; where a mesh is given on
      the command line, they go before the tables of its flags.
  """

  model: Pretrained
  scenario: Scenario
  method: ContinualMethod
  training: Training
  _: dataclasses.KW_ONLY
  seed: int = 0
  references: Mapping[str, ContinualMethod] = dataclasses.field(default_factory=dict)
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rules: tuple[Rule | tuple[Any, ...], ...] = ()

  def __post_init__(self) -> None:
    """Raises ValueError for a field of another type."""
    check_fields(self)

  def __repr__(self) -> str:
    """The facts in a line, without arrays."""
    beside = f', references={list(self.references)}' if self.references else ''
    return (
      f'Experiment({self.method.name} on {self.backbone.name}, {self.scenario.name}, '
      f'tasks={len(self.scenario.tasks)}, classes={len(self.scenario.class_order)}, '
      f'epochs={self.training.epochs}, seed={self.seed}{beside})'
    )

  @property
  def backbone(self) -> Backbone:
    """The frozen model."""
    return self.model.backbone

  @property
  def frozen(self) -> Params:
    """The weights of the backbone."""
    return self.model.params

  def replace(self, **fields: Any) -> 'Experiment':
    """The experiment with other values of some fields."""
    return dataclasses.replace(self, **fields)


def trained_as(experiment: Experiment, method: ContinualMethod) -> Experiment:
  """The experiment with the epochs and the recipe that a method brings, where it brings some.

  Args:
    experiment: any.
    method: its own, or one of its references.
  """
  own = {'epochs': method.epochs, 'recipe': method.recipe}
  given = {name: value for name, value in own.items() if value is not None}
  return experiment.replace(training=experiment.training._replace(**given)) if given else experiment


def check_experiment(experiment: Experiment) -> None:
  """Checks the parts of an experiment against each other, before anything is computed.

  Raises:
    ValueError: if two parts do not fit.
  """
  scenario, method, training = experiment.scenario, experiment.method, experiment.training
  check_fields(training)
  spec = experiment.backbone.inputs
  for task in scenario.tasks:
    check_inputs(experiment.backbone, f'task {task.name!r}', task.train)
    check_inputs(experiment.backbone, f'the test set of task {task.name!r}', task.test)
  for probe in scenario.probes:
    check_inputs(experiment.backbone, f'the probe {probe.name!r}', probe.split)
  if bad := not_finite_in(experiment.frozen):
    raise ValueError(f'the weights of {experiment.backbone.name} are not finite: {bad[0]}')
  for name, each in {'method': method, **experiment.references}.items():
    _check_backbone(name, each, experiment.backbone)
    capacity = each.capacity
    if capacity.tasks < len(scenario.tasks) or capacity.classes != len(scenario.class_order):
      raise ValueError(
        f'{name} {each.name} holds {capacity.tasks} tasks and {capacity.classes} classes, '
        f'{scenario.name} has {len(scenario.tasks)} and {len(scenario.class_order)}'
      )
  for field in ('epochs', 'batch_size', 'eval_batch_size', 'log_every'):
    if getattr(training, field) < 1:
      raise ValueError(f'{field} must be at least 1, got {getattr(training, field)}')
  if spec.kind != 'image' and training.augment is not None:
    raise ValueError(f'only images can be augmented, {experiment.backbone.name} reads {spec.what}')
  if training.cache_queries and training.augment is not None:
    raise ValueError('cache_queries needs a deterministic view: train without augmentation')
  if training.cache_queries and not any(
    each.query is not None for each in (method, *experiment.references.values())
  ):
    raise ValueError(f'{method.name} reads no frozen query, there is nothing to cache')


def check_inputs(backbone: Backbone, what: str, split: Split) -> None:
  """Checks examples against the input specification, and all token ids against the vocabulary.

  Raises:
    ValueError: if the shape or the dtype of the first example differ, or for an id that is
      neither in the vocabulary nor the pad id.
  """
  spec = backbone.inputs
  example = split.inputs[split.rows[:1]]
  if tuple(example.shape[1:]) != tuple(spec.shape):
    raise ValueError(
      f'{backbone.name} expects {spec.what} {list(spec.shape)}, {what} has '
      f'{list(example.shape[1:])}; {spec.remedy}'
    )
  if example.dtype != spec.dtype:
    raise ValueError(
      f'{backbone.name} expects {spec.what} of dtype {spec.dtype}, {what} has {example.dtype}'
    )
  vocabulary = (backbone.settings or {}).get('vocabulary')
  if spec.kind != 'tokens' or not isinstance(vocabulary, int):
    return
  for start in range(0, len(split.rows), _ROWS):
    ids = np.asarray(split.inputs[split.rows[start : start + _ROWS]])
    outside = (ids < 0) | (ids >= vocabulary)
    outside &= ids != getattr(spec, 'pad', None)
    if outside.any():
      row, place = (int(i) for i in np.argwhere(outside)[0])
      raise ValueError(
        f'{backbone.name} has the ids 0..{vocabulary - 1}, {what} has {ids[row, place]} in '
        f'example {start + row} at {place}'
      )


def identified(experiment: Experiment) -> Experiment:
  """The experiment with digests of its backbone's weights and of its data in its identity."""
  model = experiment.model
  identity, known_of = dict(model.identity), model.identity
  source = None
  if isinstance(known_of, WeightsIdentity):
    if known_of.is_of(model.params):
      source = known_of.source
    else:
      identity.pop('backbone_sha256', None)  # It belongs to other weights.
  known = {**identity, **experiment.identity}
  if 'backbone_sha256' not in known:
    identity['backbone_sha256'] = tree_sha256(model.params)
  if 'data_sha256' not in known:
    identity['data_sha256'] = data_sha256(experiment.scenario)
  if source is not None:
    identity = WeightsIdentity(identity, model.params, source)
  return experiment.replace(model=model._replace(identity=identity))


def describe(experiment: Experiment) -> dict[str, Any]:
  """The identity of a run: equal for runs whose numbers may be compared, as JSON."""
  scenario = experiment.scenario
  return {
    'benchmark': scenario.name,
    'class_order': list(scenario.class_order),
    'split_digest': scenario.digest,
    'backbone': experiment.backbone.name,
    'value_range': experiment.backbone.inputs.values,
    **experiment.model.identity,
    **experiment.identity,
  }


def facts_of(experiment: Experiment) -> dict[str, Any]:
  """Facts that `load_run` needs besides the configuration, as JSON.

  `class_names` by output, and `weights`: where to read those of the backbone, None where that is
  unknown.
  """
  identity = experiment.model.identity
  source = identity.source if isinstance(identity, WeightsIdentity) else None
  return {'class_names': list(experiment.scenario.class_names), 'weights': source}


def configuration(experiment: Experiment, method: ContinualMethod | None = None) -> dict[str, Any]:
  """All that determines a run except its seed, as JSON: runs with equal ones compute the same.

  Args:
    experiment: with its identity, as `identified` gives it.
    method: one of the references; the experiment's own by default.

  Raises:
    ValueError: if a part cannot be identified.
  """
  method = experiment.method if method is None else method
  training = settings_of(trained_as(experiment, method).training)
  return {
    'method': settings_of(method),
    'training': {key: value for key, value in training.items() if key != 'name'},
    'identity': describe(experiment),
  }


def _check_backbone(role: str, method: ContinualMethod, backbone: Backbone) -> None:
  """Raises ValueError for a method on another backbone than the experiment's."""
  facts = lambda each: (each.name, each.width, each.depth, each.inputs, each.sites)
  if facts(method.backbone) != facts(backbone):
    raise ValueError(
      f'{role} {method.name} is built on the backbone {method.backbone.name!r} '
      f'({len(method.backbone.sites)} sites, width {method.backbone.width}), the experiment on '
      f'{backbone.name!r} ({len(backbone.sites)} sites, width {backbone.width}): make the method '
      'with the backbone of the experiment'
    )
