"""Metrics of continual learning, each with one definition, over a matrix `a[time, task]`."""

from pecft_jax.measures import ACCURACY, Measure
from pecft_jax.metrics.anytime import Evaluation, anytime_accuracy, min_accuracy
from pecft_jax.metrics.confusions import confusion_matrix, per_class_accuracy
from pecft_jax.metrics.intervals import wilson_interval
from pecft_jax.metrics.matrix import validate
from pecft_jax.metrics.performance import (
  average_accuracy,
  average_incremental_accuracy,
  average_union_accuracy,
  union_accuracy,
)
from pecft_jax.metrics.plasticity import fwt, intransigence, learning_accuracy
from pecft_jax.metrics.record import Metric
from pecft_jax.metrics.stability import (
  bwt,
  bwt_trace,
  coda_forgetting,
  forgetting,
  forgetting_inclusive,
  min_acc,
  relative_forgetting,
  retention,
  wc_acc,
)
from pecft_jax.metrics.summary import METRICS, metrics_of, summarise
from pecft_jax.metrics.whole_matrix import DiazRodriguez, diaz_rodriguez
from pecft_jax.metrics.zero_shot import fwt_gem, mtil_average, mtil_last, mtil_transfer

__all__ = [
  'ACCURACY',
  'METRICS',
  'DiazRodriguez',
  'Evaluation',
  'Measure',
  'Metric',
  'anytime_accuracy',
  'average_accuracy',
  'average_incremental_accuracy',
  'average_union_accuracy',
  'bwt',
  'bwt_trace',
  'coda_forgetting',
  'confusion_matrix',
  'diaz_rodriguez',
  'forgetting',
  'forgetting_inclusive',
  'fwt',
  'fwt_gem',
  'intransigence',
  'learning_accuracy',
  'metrics_of',
  'min_acc',
  'min_accuracy',
  'mtil_average',
  'mtil_last',
  'mtil_transfer',
  'per_class_accuracy',
  'relative_forgetting',
  'retention',
  'summarise',
  'union_accuracy',
  'validate',
  'wc_acc',
  'wilson_interval',
]
