"""The records that the library is made of, each with its contract.

Axis letters: B batch, T tokens (tasks when it leads a bank), D width, C classes.
"""

from pecft_jax.typing.arrays import Array, Delta, Inputs, Key, Params
from pecft_jax.typing.backbones import (
  Backbone,
  Below,
  Entry,
  Features,
  InputSpec,
  Pretrained,
  WeightsIdentity,
)
from pecft_jax.typing.heads import Head, LinearHead
from pecft_jax.typing.hooks import (
  EndHook,
  FitLoss,
  ForwardHook,
  GatherHook,
  LossHook,
  ObserveHook,
  PredictHook,
  ProjectHook,
  StateHook,
)
from pecft_jax.typing.methods import ContinualMethod, TrainState
from pecft_jax.typing.parts import Parts
from pecft_jax.typing.plans import Fit, Gather, Joined, Once, Phase
from pecft_jax.typing.sites import SITE_KINDS, Site, SiteSpec, Watch
from pecft_jax.typing.tasks import Adapted, Batch, Capacity, Env, Given, Output, Task, Update
from pecft_jax.typing.transforms import Calibration, Kept, PeftTransform

__all__ = (
  'SITE_KINDS',
  'Adapted',
  'Array',
  'Backbone',
  'Batch',
  'Below',
  'Calibration',
  'Capacity',
  'ContinualMethod',
  'Delta',
  'EndHook',
  'Entry',
  'Env',
  'Features',
  'Fit',
  'FitLoss',
  'ForwardHook',
  'Gather',
  'GatherHook',
  'Given',
  'Head',
  'InputSpec',
  'Inputs',
  'Joined',
  'Kept',
  'Key',
  'LinearHead',
  'LossHook',
  'ObserveHook',
  'Once',
  'Output',
  'Params',
  'Parts',
  'PeftTransform',
  'Phase',
  'PredictHook',
  'Pretrained',
  'ProjectHook',
  'Site',
  'SiteSpec',
  'StateHook',
  'Task',
  'TrainState',
  'Update',
  'Watch',
  'WeightsIdentity',
)
