"""Runs whose answers are judged by a Python function on the host, as texts are."""

import collections
import functools
import types

import jax
import numpy as np
import pytest
from markov import markov_domains
from tiny_runs import outcome, silent

from pecft_jax.backbones import decoder
from pecft_jax.continual import finetune, language_model
from pecft_jax.devices.sharding import tree_shardings
from pecft_jax.measures import Measure
from pecft_jax.peft import lora
from pecft_jax.problems import classification, host_scores, judged_on_host, next_tokens
from pecft_jax.train import (
  Experiment,
  NonFiniteLoss,
  Stopped,
  Training,
  adam,
  compile_steps,
  evaluation,
  one_device,
  run,
)
from pecft_jax.train.phases import Answers
from pecft_jax.typing import Capacity, Env, Pretrained
from pecft_jax.workdir.checkpoint import Checkpoints
from pecft_jax.workdir.position import Findings, Position

WORDS, LENGTH = 8, 6
OVERLAP = Measure('word overlap', 0.0, 1.0)


def overlap(answers, targets):
  """The share of words that two texts have in common, whatever their order (as ROUGE-1's F)."""
  counts = lambda ids: np.stack([(ids == word).sum(1) for word in range(WORDS)], 1)
  return np.minimum(counts(answers), counts(targets)).sum(1) / LENGTH


def by_hand(answers, targets):
  """The same of one text, with bags of words."""
  common = collections.Counter(answers.tolist()) & collections.Counter(targets.tolist())
  return sum(common.values()) / len(targets)


@functools.cache
def scenario():
  return markov_domains(2, vocabulary=WORDS, length=LENGTH, train=8, test=7)


@functools.cache
def reader():
  return decoder(
    vocabulary=WORDS, width=8, depth=1, heads=2, kv_heads=1, hidden=8, length=LENGTH, pad=-1
  )


@functools.cache
def model():
  return Pretrained(reader(), jax.jit(reader().init)(jax.random.key(0)))


@functools.cache
def experiment(score=overlap):
  capacity = Capacity(2, 1, judged_on_host(next_tokens(LENGTH), score, OVERLAP))
  method = language_model(reader(), capacity, peft=lora('attn|mlp', rank=2))
  # 7 examples in batches of 3: the last one is filled up.
  training = Training(adam(0.1), epochs=2, batch_size=4, eval_batch_size=3)
  return Experiment(model(), scenario(), method, training)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  run(experiment(), workdir, silent())
  return workdir


def test_the_matrix_is_the_mean_of_scores_of_the_final_models_answers(whole):
  each = experiment()
  steps = compile_steps(each.method, each.training.recipe, one_device(), each.frozen)
  like = jax.eval_shape(steps.init, jax.random.key(0), each.frozen)
  state, _ = Checkpoints(whole / 'checkpoints').newest(
    like, tree_shardings(one_device(), like), print
  )
  found, predict = outcome(whole)['results'], jax.jit(each.method.predict)
  assert found['measure']['name'] == 'word overlap'
  for j, task in enumerate(scenario().tasks):
    x = task.test.inputs[task.test.rows]
    logits = predict(state.params, state.memory, Env(each.frozen, state.task), x)
    pairs = zip(np.asarray(logits).argmax(-1), task.test.labels, strict=True)
    want = np.mean([by_hand(*pair) for pair in pairs])
    assert found['word_overlap_matrix'][1][j] == pytest.approx(want, abs=1e-12)
  assert found['settings']['method']['capacity']['problem']['score']['function'].endswith('overlap')
  assert set(found['compilations'].values()) == {1}
  assert 'answer' in found['compilations'] and 'predict' not in found['compilations']


def test_a_run_that_stops_within_an_evaluation_goes_on_as_if_it_had_not(whole, interrupt, tmp_path):
  interrupt(8)
  with pytest.raises(Stopped, match='task 0, evaluate 2'):
    run(experiment(), tmp_path, silent())
  interrupt(None)
  run(experiment(), tmp_path, silent())
  assert outcome(tmp_path) == outcome(whole)


def test_seeds_are_judged_side_by_side_and_rows_that_fill_up_are_left_out():
  rng = np.random.default_rng(0)
  answers, targets = rng.integers(0, WORDS, (2, 3, LENGTH)), rng.integers(0, WORDS, (3, LENGTH))
  valid = np.array([True, True, False])
  given = Answers(answers, np.stack([targets] * 2), np.stack([valid] * 2), np.zeros(2, bool))
  steps = types.SimpleNamespace(answer=lambda *args: given, parts=None, seed_axes=1)
  loop = types.SimpleNamespace(
    steps=steps, method=experiment().method, frozen=None, experiment=experiment()
  )
  sets = len(experiment().scenario.tasks)
  before = [[0.5, 0.5, 2], *[[0.0, 0.0, 0]] * (sets - 1)]
  position = Position(seeds=[Findings(), Findings(counts=before)])
  # One example of the first test set, one of the second; the last row only fills up the batch.
  asked = evaluation.Asked(None, np.array([0, 1, 0]), None)
  evaluation._on_host(loop, None, position, asked, None)
  own = [[by_hand(a, t) for a, t in zip(rows, targets, strict=True)] for rows in answers]
  first, second = (found.counts for found in position.seeds)
  assert first[0] == [pytest.approx(own[0][0])] * 2 + [1]
  assert first[1] == [pytest.approx(own[0][1])] * 2 + [1]
  assert second[0] == [pytest.approx(0.5 + own[1][0])] * 2 + [3]


def test_another_judge_is_another_run(whole):
  def exact(answers, targets):
    return (answers == targets).all(1)

  with pytest.raises(ValueError, match='score'):
    run(experiment(exact), whole, silent())


def test_answers_that_are_no_numbers_stop_the_run(tmp_path):
  each = experiment()
  broken = each.method._replace(predict=lambda *args: each.method.predict(*args) * np.nan)
  with pytest.raises(NonFiniteLoss, match='an answer to test set 0 is not a number, after task 0'):
    run(each.replace(method=broken), tmp_path, silent())


def test_scores_are_a_number_for_each_example_within_the_range():
  ids = np.zeros((3, LENGTH), np.int32)
  judge = lambda score: judged_on_host(next_tokens(LENGTH), score, OVERLAP)
  exact = judge(lambda a, t: (a == t).all(1))
  np.testing.assert_array_equal(host_scores(exact, ids, ids), np.ones(3))
  with pytest.raises(ValueError, match=r'a number for each of 3 examples, \[3\], got bool\[3, 6\]'):
    host_scores(judge(lambda a, t: a == t), ids, ids)
  with pytest.raises(ValueError, match=r'word overlap: expected scores in \[0.0, 1.0\], .* 100.0'):
    host_scores(judge(lambda a, t: np.full(3, 100.0)), ids, ids)
  with pytest.raises(ValueError, match='the judge gave nan'):
    host_scores(judge(lambda a, t: np.full(3, np.nan)), ids, ids)


def test_classes_are_judged_on_the_devices():
  with pytest.raises(ValueError, match='answers to classification are classes'):
    judged_on_host(classification, overlap, OVERLAP)
  with pytest.raises(ValueError, match='the name of a measure to be words'):
    judged_on_host(next_tokens(LENGTH), overlap, OVERLAP._replace(name='rouge-1'))
  assert finetune(reader(), Capacity(2, 2)).capacity.problem.host is None
