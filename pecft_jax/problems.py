"""Problems: targets, losses, and how predictions are scored.

Axis letters: B batch, C classes, T tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pecft_jax.measures import ACCURACY, Measure, check_measure
from pecft_jax.settings import record_line, recorded

Array = jax.Array

_OUT = -1e9  # The logit of a class that may not be chosen: finite, so that gradients are.


class Judged(NamedTuple):
  """Sums over a batch; the measure is `score / total`."""

  score: Array  # [] int32 or float32, chosen among all classes seen.
  aware: Array  # The same with the task of each example known.
  total: Array  # [] int32
  # [2, C] int32, the right answers to examples of each class: among all classes seen, and with the
  # task known; None where answers are no classes.
  hits: Array | None = None


class HostScore(Protocol):
  """A judge in plain Python: exact match, ROUGE, a program that runs what was answered."""

  def __call__(self, answers: np.ndarray, targets: np.ndarray, /) -> np.ndarray:
    """Returns the score of each example [n], numbers in the range of the measure.

    Must be a function of each example alone, and the same whenever it is asked: n is what a batch
    holds, and differs from batch to batch.

    Args:
      answers: [n, ...], what `HostJudge.answers` made of the model's.
      targets: [n, ...], as the data have them.
    """
    ...


class HostJudge(NamedTuple):
  """Scores answers on the host, outside of compiled functions.

  Attributes:
    answers: `(answers) -> [B, ...]`, on the devices: the part of `predict`'s answers that
      is brought to the host, such as one token id for V logits.
    score: judges the examples of a batch; rows that only fill it up are left out.
  """

  answers: Callable[[Array], Array]
  score: HostScore


class Problem(NamedTuple):
  """The prediction target of an example, its loss, and how predictions are scored.

  Attributes:
    name: for reports and errors.
    target: shape and dtype of the target of one example.
    losses: `(answers, y, allowed) -> [B]`, the training loss of each example.
      `answers` are `Output.logits`; `allowed` [C] bool are the classes that
      may be chosen; ignored where answers are not classes.
    divergence: `(old, new, known, temperature) -> [B]`, of new answers from
      old ones, for distillation. Times temperature^2, its gradient has the
      size of that of `losses`.
    judge: `(answers, y, valid, seen, own) -> Judged`, of answers as `predict`
      or `Output.logits` gives them, among the classes `seen` [C], and with
      the task known among its `own` [C].
    measure: what `judge` sums up to.
    classes: whether `y` is the position of a class.
    score_dtype: of the sums of `judge`: int32 where it counts.
    host: judges evaluations in the place of `judge`, which then is for the log of training
      alone; None: all is judged on the devices.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  name: str
  target: jax.ShapeDtypeStruct
  losses: Callable[[Array, Array, Array], Array]
  divergence: Callable[[Array, Array, Array, float], Array]
  judge: Callable[[Array, Array, Array, Array, Array], Judged]
  measure: Measure
  classes: bool = False
  score_dtype: Any = np.int32
  host: HostJudge | None = None
  settings: Mapping[str, Any] | None = None

  def __repr__(self) -> str:
    """The settings in a line."""
    return record_line(self)


def cross_entropy(logits: Array, labels: Array, allowed: Array) -> Array:
  """Per-example cross-entropy [B] over the allowed classes.

  Args:
    logits: [B, C]
    labels: [B] int32, each of an allowed class.
    allowed: [C] bool; other classes are left out of the softmax.
  """
  logits = jnp.where(allowed, logits.astype(jnp.float32), _OUT)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def divergence(old: Array, new: Array, known: Array, temperature: float) -> Array:
  """KL(softmax(old / tau) || softmax(new / tau)) [B] over the known classes [C] bool."""
  log = lambda logits: jax.nn.log_softmax(jnp.where(known, logits / temperature, _OUT))
  p, q = log(old), log(new)
  return (jnp.exp(p) * (p - q) * known).sum(-1)


def _judge_classes(answers: Array, y: Array, valid: Array, seen: Array, own: Array) -> Judged:
  def right(allowed: Array) -> Array:
    guess = jnp.where(allowed, answers, -jnp.inf).argmax(-1)
    return (guess == y) & valid

  count = lambda rows: rows.sum(0, dtype=jnp.int32)
  score, aware = right(seen), right(own)
  of_class = y[:, None] == jnp.arange(answers.shape[-1])
  hits = jnp.stack([count(each[:, None] & of_class) for each in (score, aware)])
  return Judged(count(score), count(aware), count(valid), hits)


# One class among all: `y` [B] is its position in the class order, answers are logits [B, C].
classification = Problem(
  'classification',
  jax.ShapeDtypeStruct((), np.int32),
  cross_entropy,
  divergence,
  _judge_classes,
  ACCURACY,
  classes=True,
  settings={'name': 'classification'},
)


@recorded
def next_tokens(length: int) -> Problem:
  """Tokens of a text: `y` [B, T] int32, -1 where there is no target; answers are logits [B, T, V].

  The loss of an example is the mean over its tokens; the measure counts tokens.

  Args:
    length: T, at least 1.

  Raises:
    ValueError: for a length below 1.
  """
  if length < 1:
    raise ValueError(f'expected texts of at least one token, got length={length}')

  def mean_of_asked(values: Array, y: Array) -> Array:
    asked = y >= 0
    return jnp.where(asked, values, 0).sum(-1) / jnp.maximum(asked.sum(-1), 1)

  def losses(answers: Array, y: Array, allowed: Array) -> Array:
    del allowed
    logits = answers.astype(jnp.float32)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
    return mean_of_asked(each, y)

  def distance(old: Array, new: Array, known: Array, temperature: float) -> Array:
    del known
    p, q = (jax.nn.log_softmax(a.astype(jnp.float32) / temperature) for a in (old, new))
    return (jnp.exp(p) * (p - q)).sum(-1).mean(-1)

  def judge(answers: Array, y: Array, valid: Array, seen: Array, own: Array) -> Judged:
    del seen, own
    asked = (y >= 0) & valid[:, None]
    right = ((answers.argmax(-1) == y) & asked).sum(dtype=jnp.int32)
    return Judged(right, right, asked.sum(dtype=jnp.int32))

  target = jax.ShapeDtypeStruct((length,), np.int32)
  return Problem(
    'next_tokens', target, losses, distance, judge, Measure('token accuracy', 0.0, 1.0)
  )


@recorded
def regression(width: int) -> Problem:
  """Numbers: `y` [B, width] float32; answers [B, width]; judged by the mean squared error.

  Args:
    width: of a target, at least 1.

  Raises:
    ValueError: for a width below 1.
  """
  if width < 1:
    raise ValueError(f'expected targets of at least one number, got width={width}')

  def losses(answers: Array, y: Array, allowed: Array) -> Array:
    del allowed
    if answers.shape != y.shape:  # Broadcasting would silently give another loss.
      raise ValueError(f'expected answers {list(y.shape)}, got {list(answers.shape)}')
    return jnp.square(answers.astype(jnp.float32) - y).mean(-1)

  def distance(old: Array, new: Array, known: Array, temperature: float) -> Array:
    del known, temperature
    return jnp.square(old - new).mean(-1)

  def judge(answers: Array, y: Array, valid: Array, seen: Array, own: Array) -> Judged:
    del seen, own
    errors = jnp.where(valid, jnp.square(answers - y).mean(-1), 0).sum()
    return Judged(errors, errors, valid.sum(dtype=jnp.int32))

  target = jax.ShapeDtypeStruct((width,), np.float32)
  measure = Measure('mean squared error', 0.0, float('inf'), higher_is_better=False)
  return Problem('regression', target, losses, distance, judge, measure, score_dtype=np.float32)


def most_likely(answers: Array) -> Array:
  """The entry with the highest logit: [B, T, V] -> int32 [B, T].

  >>> most_likely(jnp.asarray([[0.0, 2.0, 1.0]])).tolist()
  [1]
  """
  return answers.argmax(-1).astype(jnp.int32)


@recorded
def judged_on_host(
  problem: Problem,
  score: HostScore,
  measure: Measure,
  *,
  answers: Callable[[Array], Array] = most_likely,
) -> Problem:
  """A problem whose evaluations are judged by a Python function, as texts are.

  After each batch of an evaluation, answers and targets come to the host, and `score` gives a
  number for each example; the measure of a test set is their mean. In a job of several processes
  each one judges all examples. `score` may decode token ids with a tokenizer. It is part of what
  identifies a run, with all that it closes over: a tokenizer is named by a factory that is
  `recorded`. Training minimises the losses of `problem`, and the log of training has its measure.

  Args:
    problem: whose answers are no classes.
    score: `(answers, targets) -> scores [n]`, numpy arrays.
    measure: name and range of the mean of the scores.
    answers: what comes to the host of a batch's answers; by default the most likely tokens.

  Raises:
    ValueError: for a classification problem, or an invalid measure.

  >>> exact = lambda answers, targets: (answers == targets).all(-1)
  >>> problem = judged_on_host(next_tokens(8), exact, Measure('exact match', 0.0, 1.0))
  >>> problem.measure.key
  'exact_match'
  """
  if problem.classes:
    raise ValueError(
      f'answers to {problem.name} are classes, which are judged among those seen and those of a '
      'task, on the devices; expected a problem of other answers, such as next_tokens(length)'
    )
  return problem._replace(measure=check_measure(measure), host=HostJudge(answers, score))


def host_scores(problem: Problem, answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """The score of each example by the problem's judge on the host: float64 [n].

  Raises:
    ValueError: for scores of another shape, or outside of the measure's range.
  """
  assert problem.host is not None
  measure, n = problem.measure, len(answers)
  found = np.asarray(problem.host.score(answers, targets))
  if found.shape != (n,) or found.dtype.kind not in 'biuf':
    raise ValueError(
      f'{measure.name}: expected the judge to give a number for each of {n} examples, [{n}], got '
      f'{found.dtype}{list(found.shape)}'
    )
  scores = found.astype(np.float64)
  slack = 1e-6  # Means of float32 may be above 1 by a rounding.
  outside = ~((scores >= measure.low - slack) & (scores <= measure.high + slack))
  if outside.any():
    raise ValueError(
      f'{measure.name}: expected scores in [{measure.low}, {measure.high}], the judge gave '
      f'{scores[outside][0]}'
    )
  return scores


def need_classes(problem: Problem, name: str) -> None:
  """Raises ValueError for a method that needs classes on a problem without classes."""
  if not problem.classes:
    raise ValueError(
      f'{name} needs classes, but the problem is {problem.name}: choose a method whose answers are '
      'not classes, such as finetune, language_model, er or ewc around them'
    )


def need_row_of_answers(problem: Problem, width: int, name: str) -> None:
  """Raises ValueError for a method with one head on a problem whose answers are not [B, width].

  >>> need_row_of_answers(regression(4), 4, 'finetune')
  """
  answers = jax.ShapeDtypeStruct((1, width), np.float32)
  target = jax.ShapeDtypeStruct((1, *problem.target.shape), problem.target.dtype)
  allowed = jax.ShapeDtypeStruct((width,), np.bool_)
  try:
    jax.eval_shape(problem.losses, answers, target, allowed)
  except (AssertionError, TypeError, ValueError) as error:
    raise ValueError(
      f'{name} answers each example with {width} numbers (the classes of its capacity), but the '
      f'problem is {problem.name} with targets {target.dtype}{list(problem.target.shape)}: choose '
      'a capacity of that width, or a method for such answers, as language_model is for tokens'
    ) from error
