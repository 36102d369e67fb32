"""Running experiments: steps, the loop, checkpoints, results."""

from pecft_jax.devices.rules import Rule, fsdp, split_memory, tensor_parallel
from pecft_jax.devices.sharding import Layout, describe_rules, make_mesh, one_device
from pecft_jax.recipes import Recipe, adam, grouped, lora_plus, recipe, sgd, with_rates
from pecft_jax.schedules import constant, cosine, milestones, quarter_cosine, warmup
from pecft_jax.train.adapted import After, adapted_after
from pecft_jax.train.check import check_method
from pecft_jax.train.context import NonFiniteLoss
from pecft_jax.train.experiment import Experiment, Training
from pecft_jax.train.features import class_features
from pecft_jax.train.job import Stopped
from pecft_jax.train.many import AdapterLog, Adapters, ManyAdapters, many_adapters
from pecft_jax.train.options import RunOptions
from pecft_jax.train.running import run, run_orders, run_seeds
from pecft_jax.train.step import Steps, compile_steps
from pecft_jax.train.tuning import Trial, Tuned, combinations, tuned
from pecft_jax.workdir.branch import Branch
from pecft_jax.workdir.record import tensorboard

__all__ = (
  'AdapterLog',
  'Adapters',
  'After',
  'Branch',
  'Experiment',
  'Layout',
  'ManyAdapters',
  'NonFiniteLoss',
  'Recipe',
  'Rule',
  'RunOptions',
  'Steps',
  'Stopped',
  'Training',
  'Trial',
  'Tuned',
  'adam',
  'adapted_after',
  'check_method',
  'class_features',
  'combinations',
  'compile_steps',
  'constant',
  'cosine',
  'describe_rules',
  'fsdp',
  'grouped',
  'lora_plus',
  'make_mesh',
  'many_adapters',
  'milestones',
  'one_device',
  'quarter_cosine',
  'recipe',
  'run',
  'run_orders',
  'run_seeds',
  'sgd',
  'split_memory',
  'tensor_parallel',
  'tensorboard',
  'tuned',
  'warmup',
  'with_rates',
)
