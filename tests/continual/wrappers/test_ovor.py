import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import masked_finetune, ovor
from pecft_jax.peft import lora

from ..tiny import CAPACITY, CLASSES, TOY, env, frozen_of, run, shaken

torch = pytest.importorskip('torch')
SIZES = {
  'epochs': 1, 'sample': 6, 'outliers': 4, 'boundary': 2, 'draws': 3, 'neighbour': 2, 'batch': 3
}  # fmt: skip
INNER = masked_finetune(TOY, CAPACITY, peft=lora('fc$', rank=2))


@pytest.mark.parametrize('scale', [0.2, 20.0])
def test_the_loss_is_a_cross_entropy_and_two_hinges_of_energies(scale):
  method = ovor(INNER, **SIZES, strength=0.3, inside=-2.0, outside=-0.5)
  params, memory = method.init(jax.random.key(0), frozen_of(TOY))
  params = shaken(params, 2)
  rng = np.random.default_rng(1)
  h, far = scale * rng.normal(size=(6, 6)), scale * rng.normal(size=(4, 6))
  y = np.array([2, 3, 4, 2, 3, 4], np.int32)
  kept = memory['sample']._replace(
    rank=jnp.arange(6, dtype=jnp.uint32), items=(jnp.float32(h), jnp.asarray(y))
  )
  memory = {**memory, 'sample': kept, 'outliers': jnp.float32(far), 'there': jnp.ones(4, bool)}
  phase = next(p for p in method.phases if p.name == 'reject')
  key = jax.random.key(4)
  value, slopes = jax.value_and_grad(phase.loss)(params, memory, env({}, 1), None, key)
  draw = lambda key, n, count: jax.random.categorical(key, jnp.zeros(n), shape=(count,))
  k_inside, k_outside = jax.random.split(key)
  mine, theirs = draw(k_inside, 6, 3), draw(k_outside, 4, 2)
  kernel, bias = (
    torch.tensor(np.asarray(a, np.float64), requires_grad=True)
    for a in (params['head'].kernel, params['head'].bias)
  )
  own = list(CLASSES[1])
  logits = lambda x: (torch.tensor(x) @ kernel + bias)[:, own]
  inside, outside = logits(h[np.asarray(mine)]), logits(far[np.asarray(theirs)])
  huber = torch.nn.HuberLoss()
  hinge = lambda x: huber(torch.relu(x), torch.zeros_like(x))
  wanted = torch.nn.functional.cross_entropy(inside, torch.tensor(y[np.asarray(mine)] - 2).long())
  wanted = wanted + 0.3 * (hinge(-inside.logsumexp(1) + 2.0) + hinge(-0.5 + outside.logsumexp(1)))
  wanted.backward()
  np.testing.assert_allclose(value, wanted.item(), rtol=1e-4)
  np.testing.assert_allclose(slopes['head'].kernel, kernel.grad, atol=1e-3)
  np.testing.assert_allclose(slopes['head'].bias, bias.grad, atol=1e-4)


def test_the_head_alone_is_tuned_after_every_task_and_no_feature_stays():
  ran = run(ovor(INNER, **SIZES), TOY)
  assert [s.task for s in ran.stages if s.name == 'reject'] == [0, 0, 1, 1, 2, 2]
  for stage in ran.stages:
    if stage.name == 'reject':
      before, after = ran.before(stage).params, stage.state.params
      assert not np.array_equal(before['head'].kernel, after['head'].kernel)
      same = jax.tree.map(np.array_equal, before['delta'], after['delta'])
      assert all(jax.tree.leaves(same))
    if stage.name == 'end':
      assert not stage.state.memory['outliers'].any()
      assert not stage.state.memory['sample'].filled.any()


def test_impossible_settings_are_refused():
  with pytest.raises(ValueError, match='7 outliers are more than 2 x 3 draws'):
    ovor(INNER, **{**SIZES, 'outliers': 7})
  with pytest.raises(ValueError, match='needs a method with a head'):
    ovor(INNER._replace(head=None))
