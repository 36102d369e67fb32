"""Uses what a run learned: predictions, features, bundles for other machines.

learner = load_run('runs/split_digits')
learner.classes                         # Names of the classes learned so far.
learner.predict(images)                 # Logits [N, C].
save_bundle(learner, 'digits')          # For load_bundle on another machine.
save_stablehlo(learner, 'program')      # For a machine without this library.
"""

from pecft_jax.learners.bundle import is_bundle, load_bundle, save_bundle
from pecft_jax.learners.from_run import load_run
from pecft_jax.learners.from_settings import NotRemade
from pecft_jax.learners.learner import Learned, Learner
from pecft_jax.learners.stablehlo import save_stablehlo

__all__ = (
  'Learned',
  'Learner',
  'NotRemade',
  'is_bundle',
  'load_bundle',
  'load_run',
  'save_bundle',
  'save_stablehlo',
)
