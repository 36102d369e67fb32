import functools

import jax
import numpy as np
import pytest
from markov import markov_domains
from tiny_runs import silent

from pecft_jax.backbones import decoder
from pecft_jax.continual import derpp, er, ewc, icarl, language_model, lwf, sema
from pecft_jax.peft import full, lora
from pecft_jax.problems import next_tokens
from pecft_jax.train import Experiment, Training, adam, run
from pecft_jax.typing import Batch, Capacity, Pretrained

from ..tiny import TOY, env, frozen_of, shaken

WORDS, LENGTH, TASKS, WIDTH = 20, 12, 3, 16
CAPACITY = Capacity(TASKS, 1, next_tokens(LENGTH))
READER = decoder(
  vocabulary=WORDS, width=WIDTH, depth=2, heads=4, kv_heads=2, hidden=24, length=LENGTH
)
KEY = jax.random.key(0)


@functools.cache
def frozen():
  return shaken(frozen_of(READER), 3, 0.1)


def texts(rows=4, seed=0):
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, WORDS, (rows, LENGTH + 1)).astype(np.int32)
  y = ids[:, 1:].copy()
  y[0, 7:] = -1  # Nothing is asked for there.
  number = np.arange(rows, dtype=np.int32)
  return Batch(ids[:, :-1], y, number < rows - 1, number)


def by_hand(states, kernel, batch):
  """Mean over texts of the mean over tokens of -log p, in float64; right and asked tokens."""
  logits = np.asarray(states, np.float64) @ np.asarray(kernel, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  asked = batch.y >= 0
  each = -np.take_along_axis(log_p, np.maximum(batch.y, 0)[..., None], -1)[..., 0]
  texts = (each * asked).sum(1) / asked.sum(1)
  asked = asked & batch.valid[:, None]
  return texts[batch.valid].mean(), ((logits.argmax(-1) == batch.y) & asked).sum(), asked.sum()


@pytest.mark.parametrize('own_head', [False, True])
def test_loss_and_accuracy_are_those_of_the_token_behind_each(own_head):
  rng = np.random.default_rng(4)
  head = {'kernel': rng.normal(size=(WIDTH, WORDS)).astype(np.float32)} if own_head else None
  method = language_model(READER, CAPACITY, peft=lora(rank=2), head=head)
  params, memory = method.init(KEY, frozen())
  params, some, where = shaken(params, 5), texts(), env(frozen(), 1, ((0,),) * TASKS)
  loss, out = method.loss(params, memory, where, some, None)
  states = READER.apply(frozen(), some.x, params['delta'], peft=lora(rank=2)).tokens
  kernel = head['kernel'] if own_head else frozen()['embed']['table'].T
  want, right, asked = by_hand(states, kernel, some)
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  answers = method.predict(params, memory, where, some.x)
  assert answers.shape == (4, LENGTH, WORDS)
  judged = CAPACITY.problem.judge(answers, some.y, some.valid, None, None)
  assert (int(judged.score), int(judged.total)) == (right, asked)


def test_a_transform_that_replaces_the_table_replaces_the_head():
  method = language_model(READER, CAPACITY, peft=full())
  params, memory = method.init(KEY, frozen())
  params = shaken(params, 5)
  trained = full().replace(params['delta'], frozen())
  logits = method.forward(params, memory, env(frozen(), 0), texts().x, None).logits
  states = READER.apply(trained, texts().x).tokens
  np.testing.assert_allclose(logits, states @ trained['embed']['table'].T, atol=1e-5)


def test_what_a_token_is_answered_depends_on_no_token_behind_it():
  method = language_model(READER, CAPACITY, peft=lora(rank=2))
  params, memory = method.init(KEY, frozen())
  x = texts().x
  other = x.copy()
  other[:, 8:] = (other[:, 8:] + 1) % WORDS
  a, b = (method.predict(params, memory, env(frozen(), 0), ids) for ids in (x, other))
  np.testing.assert_allclose(a[:, :8], b[:, :8], atol=1e-5)
  assert np.abs(a[:, 8:] - b[:, 8:]).max() > 1e-2


@pytest.mark.parametrize('wrap', [derpp, lambda m: icarl(READER, m.capacity)])
def test_methods_that_mean_classes_are_refused(wrap):
  with pytest.raises(ValueError, match='needs classes, but the problem is next_tokens'):
    wrap(language_model(READER, CAPACITY, peft=lora(rank=2)))
  with pytest.raises(ValueError, match='sema needs classes'):
    sema(READER, CAPACITY)


def test_what_does_not_fit_is_refused_at_construction():
  with pytest.raises(ValueError, match='reads texts, toy reads images'):
    language_model(TOY, CAPACITY)
  with pytest.raises(ValueError, match=r'Capacity\(tasks, 1, next_tokens\(12\)\)'):
    language_model(READER, Capacity(TASKS, 5))
  with pytest.raises(ValueError, match=r'the token after each of 12, but .* int32\[9\]'):
    language_model(READER, Capacity(TASKS, 1, next_tokens(9)))
  with pytest.raises(ValueError, match=r'a head \{"kernel": \[16, V\]\}, got a kernel \[3, 20\]'):
    language_model(READER, CAPACITY, head={'kernel': np.zeros((3, WORDS))})


WRAPPED = {
  'plain': lambda m: m,
  'er': lambda m: er(m, size=150),
  'ewc': lambda m: ewc(m, strength=10.0),
  'lwf': lwf,
}


@functools.cache
def method(name):
  return WRAPPED[name](language_model(READER, CAPACITY, peft=full()))


def experiment(name, **fields):
  training = Training(adam(1e-2, clip=1.0), epochs=8, batch_size=32, eval_batch_size=50)
  model = Pretrained(READER, frozen())
  scenario = markov_domains(TASKS, vocabulary=WORDS, length=LENGTH)
  return Experiment(model, scenario, method(name), training._replace(**fields))


@pytest.mark.slow
@pytest.mark.parametrize('name', WRAPPED)
def test_domains_are_learnt_one_after_another(name, tmp_path):
  found = run(experiment(name), tmp_path, silent())
  assert set(found['compilations'].values()) == {1}
  matrix = found['token_accuracy_matrix']
  # A word in ten follows no rule; without any knowledge one in twenty is right.
  assert matrix[0][0] > 0.7 and matrix[2][2] > 0.6, matrix
  if name == 'er':
    assert matrix[2][0] > 0.5, matrix
  if name == 'plain':
    assert matrix[2][0] < 0.3, matrix
