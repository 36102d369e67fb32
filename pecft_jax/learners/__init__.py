"""Uses what a run learned: predictions, features, bundles for other machines.

learner = load_run('runs/split_digits')
learner.classes                      # Names of the classes learned so far.
learner.predict(images)              # Logits [N, C].
"""

from pecft_jax.learners.from_run import load_run
from pecft_jax.learners.learner import Learned, Learner

__all__ = ('Learned', 'Learner', 'load_run')
