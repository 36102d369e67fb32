"""SHiRA, against numpy and huggingface/peft."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.peft import shira, weight_sites

D_IN, D_OUT, RANK = 7, 5, 2


def made(rank=RANK):
  params = {'fc': {'w': jax.random.normal(jax.random.key(1), (D_IN, D_OUT)), 'b': jnp.ones(D_OUT)}}
  peft = shira('fc', rank=rank)
  delta = peft.init(jax.random.key(0), weight_sites(params), params)
  values = jax.random.normal(jax.random.key(2), delta['fc'].values.shape)
  return params, peft, {'fc': delta['fc']._replace(values=values)}


def test_as_many_different_entries_as_lora_has_are_changed():
  params, peft, delta = made()
  index = np.asarray(delta['fc'].index.value)
  assert len(set(index.tolist())) == len(index) == RANK * (D_IN + D_OUT)
  want = np.asarray(params['fc']['w']).reshape(-1).copy()
  want[index] += np.asarray(delta['fc'].values)
  got = peft.merge(delta, params)['fc']['w']
  np.testing.assert_allclose(got, want.reshape(D_IN, D_OUT), atol=1e-6)


def test_sites_have_entries_of_their_own():
  params = {name: {'w': jnp.zeros((20, 20)), 'b': jnp.zeros(20)} for name in ('fc_a', 'fc_b')}
  delta = shira('fc', rank=1).init(jax.random.key(0), weight_sites(params), params)
  assert not np.array_equal(delta['fc_a'].index.value, delta['fc_b'].index.value)


def test_outputs_and_gradients_are_those_of_hugging_face():
  torch = pytest.importorskip('torch')
  theirs = pytest.importorskip('peft')
  params, peft, delta = made()
  linear = torch.nn.Sequential(torch.nn.Linear(D_IN, D_OUT))
  config = theirs.ShiraConfig(r=RANK, target_modules=['0'], init_weights=True)
  model = theirs.get_peft_model(linear, config)
  layer = model.base_model.model[0]
  index = np.asarray(delta['fc'].index.value)
  with torch.no_grad():
    layer.base_layer.weight[:] = torch.tensor(np.asarray(params['fc']['w']).T)
    layer.base_layer.bias[:] = 1
    layer.shira_weight['default'][:] = torch.tensor(np.asarray(delta['fc'].values))
    places = np.stack([index % D_OUT, index // D_OUT])
    layer.shira_indices['default'] = torch.tensor(places, dtype=torch.int32)
  x = np.asarray(jax.random.normal(jax.random.key(3), (3, D_IN)))
  want = model(torch.tensor(x))
  want.square().sum().backward()

  def out(values):
    new = peft.merge({'fc': delta['fc']._replace(values=values)}, params)['fc']
    return x @ new['w'] + new['b']

  values = delta['fc'].values
  np.testing.assert_allclose(out(values), want.detach(), atol=1e-5)
  grads = jax.grad(lambda values: jnp.square(out(values)).sum())(values)
  np.testing.assert_allclose(grads, layer.shira_weight['default'].grad, rtol=1e-4, atol=1e-4)


def test_more_entries_than_there_are_are_refused():
  with pytest.raises(ValueError, match='at most 2'):
    made(rank=3)
