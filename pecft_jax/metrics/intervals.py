"""Confidence intervals of accuracies, from the number of examples."""

import math
import statistics

from pecft_jax.arguments import checked


@checked
def wilson_interval(correct: int, examples: int, level: float = 0.95) -> tuple[float, float]:
  """The confidence interval of a share, from independent examples (Wilson, 1927).

  All shares p with |correct / n - p| <= z sqrt(p (1 - p) / n), for z the normal quantile of the
  level. Unlike the interval of correct / n plus or minus z standard errors it stays within [0, 1],
  and has a width where all or none are correct. It describes which test examples were drawn, not
  the seed of the training.

  Args:
    correct: number of examples that are correct.
    examples: n, number of all.
    level: probability that the interval holds the true share.

  Raises:
    ValueError: for less than one example, more correct than there are, or a level outside (0, 1).

  >>> [round(end, 3) for end in wilson_interval(90, 100)]
  [0.826, 0.945]
  >>> wilson_interval(3, 3)[1]
  1.0
  """
  if not 0 <= correct <= examples or examples < 1:
    raise ValueError(f'expected 0 <= correct <= examples, examples >= 1, got {correct}, {examples}')
  if not 0 < level < 1:
    raise ValueError(f'expected a level between 0 and 1, got {level}')
  z2 = statistics.NormalDist().inv_cdf((1 + level) / 2) ** 2
  share = correct / examples
  centre = share + z2 / (2 * examples)
  half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * examples)) / examples)
  low, high = ((centre + sign * half) / (1 + z2 / examples) for sign in (-1, 1))
  # Exactly 0 and 1 at the ends, where rounding may leave less.
  return 0.0 if correct == 0 else low, 1.0 if correct == examples else high
