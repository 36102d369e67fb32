"""Estimates before a run: device memory, FLOPs, time and growth, from shapes alone."""

from pecft_jax.plan.arrays import Parameter, parameters
from pecft_jax.plan.carried import carried_bytes, checkpoint_bytes, growth
from pecft_jax.plan.chips import CHIPS, Chip, find_chip
from pecft_jax.plan.cost import flops, temporaries
from pecft_jax.plan.estimate import Plan, plan, plan_experiment
from pecft_jax.plan.memory import Memory, abstract_layout, stored_as
from pecft_jax.plan.roofline import Times, times

__all__ = (
  'CHIPS',
  'Chip',
  'Memory',
  'Parameter',
  'Plan',
  'Times',
  'abstract_layout',
  'carried_bytes',
  'checkpoint_bytes',
  'find_chip',
  'flops',
  'growth',
  'parameters',
  'plan',
  'plan_experiment',
  'stored_as',
  'temporaries',
  'times',
)
