"""Trainable tokens, against numpy and huggingface/peft."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones import decoder
from pecft_jax.continual import language_model
from pecft_jax.peft import trainable_tokens
from pecft_jax.problems import next_tokens
from pecft_jax.typing import Capacity, Env

TOKENS = (5, 0, 7)
TABLE = jax.random.normal(jax.random.key(0), (9, 4))
PARAMS = {'embed': {'table': TABLE}, 'other': {'table': jnp.ones((2, 2))}}
PEFT = trainable_tokens(TOKENS)


def made():
  delta = PEFT.init(jax.random.key(0), [], PARAMS)['embed/table']
  return delta._replace(rows=delta.rows + jnp.arange(12.0).reshape(3, 4))


def test_rows_start_as_those_of_the_table():
  delta = PEFT.init(jax.random.key(0), [], PARAMS)
  assert list(delta) == ['embed/table']
  np.testing.assert_array_equal(delta['embed/table'].rows, np.asarray(TABLE)[list(TOKENS)])


def test_rows_of_these_tokens_are_replaced_and_no_others():
  new = PEFT.merge({'embed/table': made()}, PARAMS)
  want = np.asarray(TABLE).copy()
  want[list(TOKENS)] += np.arange(12, dtype=np.float32).reshape(3, 4)
  np.testing.assert_array_equal(new['embed']['table'], want)
  assert new['other']['table'] is PARAMS['other']['table']


def test_a_table_keeps_its_type():
  half = {'embed': {'table': TABLE.astype(jnp.bfloat16)}}
  delta = PEFT.init(jax.random.key(0), [], half)
  assert delta['embed/table'].rows.dtype == jnp.float32
  assert PEFT.replace(delta, half)['embed']['table'].dtype == jnp.bfloat16


def test_outputs_and_gradients_are_those_of_hugging_face():
  torch = pytest.importorskip('torch')
  theirs = pytest.importorskip('peft')
  delta, ids = made(), np.array([[5, 1, 5], [0, 8, 7]])
  embedding = torch.nn.Sequential(torch.nn.Embedding(9, 4))
  with torch.no_grad():
    embedding[0].weight[:] = torch.tensor(np.asarray(TABLE))
  config = theirs.TrainableTokensConfig(token_indices=list(TOKENS), target_modules=['0'])
  model = theirs.get_peft_model(embedding, config)
  layer = model.base_model.model[0]
  with torch.no_grad():
    layer.trainable_tokens_delta['default'][:] = torch.tensor(np.asarray(delta.rows))
  want = model(torch.tensor(ids))
  want.square().sum().backward()

  def out(rows):
    new = PEFT.replace({'embed/table': delta._replace(rows=rows)}, PARAMS)
    return new['embed']['table'][ids]

  np.testing.assert_array_equal(out(delta.rows), want.detach())
  grads = jax.grad(lambda rows: jnp.square(out(rows)).sum())(delta.rows)
  np.testing.assert_allclose(grads, layer.trainable_tokens_delta['default'].grad, rtol=1e-5)


def test_a_language_model_head_that_is_tied_has_the_rows_too():
  model = decoder(length=4, vocabulary=9, width=4, depth=1, heads=2, kv_heads=2, hidden=4)
  frozen = jax.jit(model.init)(jax.random.key(0))
  method = language_model(model, Capacity(1, 1, next_tokens(4)), peft=PEFT)
  params, memory = method.init(jax.random.key(1), frozen)
  params = {'delta': {'embed/table': params['delta']['embed/table']._replace(rows=made().rows)}}
  x = jnp.array([[5, 1, 0, 8]], jnp.int32)
  got = method.forward(params, memory, Env(frozen, None), x, None)
  whole = PEFT.merge(params['delta'], frozen)
  want = model.apply(whole, x).tokens @ whole['embed']['table'].T
  np.testing.assert_allclose(got.logits, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('tokens', 'table', 'message'),
  [
    ((), 'embed', 'expected different tokens'),
    ((1, 1), 'embed', 'expected different tokens, none negative, got'),
    ((-1,), 'embed', 'expected different tokens, none negative'),
    ((1, 9), 'embed', r'embed/table has 9 rows, got tokens \[9\]'),
    ((1,), 'nowhere', "no leaf matches 'nowhere'"),
    ((1,), 'bias', r'bias is no table of rows: it has shape \[3\]'),
  ],
)
def test_tokens_that_are_not_there_are_refused(tokens, table, message):
  with pytest.raises(ValueError, match=message):
    params = {'embed': {'table': TABLE}, 'bias': jnp.ones(3)}
    trainable_tokens(tokens, table).init(jax.random.key(0), [], params)
