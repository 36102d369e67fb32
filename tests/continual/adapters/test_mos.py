import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import mos
from pecft_jax.peft import lora, take

from ..tiny import CAPACITY, CLASSES, TOY, batch, close, env, equal, frozen_of, run, shaken

torch = pytest.importorskip('torch')

from .toy import cosines, features, masked_loss, trained, wide  # noqa: E402

FC = lora('fc$', rank=2)
OWNER = np.array([0, 0, 1, 1, 1, 2, 2], np.int32)


def made(t=2, **options):
  """A method in task t, with random adapters, means and sums of what came before."""
  frozen, method = frozen_of(TOY), mos(TOY, CAPACITY, peft=FC, **options)
  params, memory = method.init(jax.random.key(0), frozen)
  past = jnp.arange(3) < t
  bank = jax.tree.map(lambda leaf: jnp.where(past[:, None, None], leaf, 0),
                      shaken(memory['bank'], 6, 0.4))  # fmt: skip
  known = np.isin(OWNER, range(t + 1))[:, None]
  mean = jnp.float32(known * np.random.default_rng(2).normal(size=(7, 6)))
  sums = jnp.float32(known * np.random.default_rng(3).normal(size=(7, 6)))
  memory = {
    **memory,
    'bank': bank,
    'gaussians': memory['gaussians']._replace(mean=mean),
    'sums': memory['sums']._replace(sums=sums),
    'owner': jnp.where(t >= OWNER, OWNER, -1),
  }
  return method, shaken(params, 5, 0.4), memory, env(frozen, t)


def test_features_are_kept_apart_from_each_other_and_from_old_means():
  method, params, memory, where = made(contrast=0.3, temperature=0.7)
  some = batch(TOY.inputs.shape, CLASSES[2], 3)
  (loss, _), slopes = jax.value_and_grad(method.loss, has_aux=True)(
    params, memory, where, some, None
  )
  ours = trained(params)
  h = features(where.frozen, ours['delta'], some.x)
  rows = torch.cat([wide(memory['gaussians'].mean)[:5], h[torch.tensor(some.valid)]])
  alike = rows @ rows.T / 0.7
  apart = torch.nn.functional.cross_entropy(alike, torch.arange(len(rows)))
  logits = h @ ours['head'].kernel + ours['head'].bias
  wanted = masked_loss(logits, some, CLASSES[2]) + 0.3 * apart
  wanted.backward()
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
  for slope, leaf in zip(jax.tree.leaves(slopes), jax.tree.leaves(ours), strict=True):
    np.testing.assert_allclose(slope, leaf.grad, atol=2e-5)


def test_after_an_update_the_adapter_is_merged_with_the_mean_of_past_ones():
  method, params, memory, where = made(merged=0.3)
  after, same = method.observe(params, memory, where, None, None, None, None)
  for part in ('a', 'b'):
    now, bank = (
      np.asarray(getattr(each['block_0/fc'], part), np.float64)
      for each in (params['delta'], memory['bank'])
    )
    want = 0.7 * now + 0.3 * bank[:2].mean(0)
    np.testing.assert_allclose(getattr(after['delta']['block_0/fc'], part), want, atol=1e-6)
  equal((after['head'], same), (params['head'], memory))
  first, *_ = made(0)[0].observe(params, memory, made(0)[3], None, None, None, None)
  equal(first, params)


def by_hand(params, memory, frozen, x, t, rounds):
  """Answers of one example after another, and how many rounds each of them took."""
  found, taken = [], []
  for row in x:
    h = [
      features(frozen, params['delta'] if i == t else take(memory['bank'], i), row[None])
      for i in range(t + 1)
    ]
    seen = [c for c in range(7) if OWNER[c] <= t]
    near = cosines(h[0], wide(memory['sums'].sums))[0, seen]
    task, spent = OWNER[seen[int(near.argmax())]], 0
    while True:
      spent += 1
      logits = (h[task] @ wide(params['head'].kernel) + wide(params['head'].bias))[0, seen]
      named = OWNER[seen[int(logits.argmax())]]
      if named == task or spent == rounds:
        break
      task = named
    answer = torch.full((7,), -torch.inf)
    answer[seen] = (logits.softmax(0) + (near * (t + 1)).softmax(0)).float()
    found.append(answer)
    taken.append(spent)
  return torch.stack(found), taken


@pytest.mark.parametrize('t', [0, 1, 2])
def test_a_prediction_refines_the_task_until_it_stays(t):
  method, params, memory, where = made(t)
  x = batch(TOY.inputs.shape, range(7), 4, rows=40).x
  want, taken = by_hand(params, memory, where.frozen, x, t, rounds=4)
  found = jax.jit(method.predict)(params, memory, where, x)
  np.testing.assert_allclose(found, want, atol=1e-5)
  assert t < 2 or {1, 2, 4} <= set(taken)


def test_the_first_adapter_has_the_prototypes_and_each_task_its_gaussians():
  method, params, memory, where = made()
  _, memory = method.begin_task(params, memory, where, jax.random.key(0))
  some = batch(TOY.inputs.shape, CLASSES[2], 3, rows=9)
  after = jax.jit(method.consolidate)(params, memory, where, some)
  first = features(where.frozen, take(memory['bank'], 0), some.x)
  own = features(where.frozen, params['delta'], some.x)
  for c in CLASSES[2]:
    rows = torch.tensor((some.y == c) & some.valid)
    np.testing.assert_allclose(after['sums'].sums[c], first[rows].sum(0), atol=1e-5)
    np.testing.assert_allclose(after['gaussians'].mean[c], own[rows].mean(0), atol=1e-5)
  old = np.array([0, 1, 2, 3, 4])
  close(after['sums'].sums[old], memory['sums'].sums[old])
  assert after['owner'].tolist() == OWNER.tolist()


def test_a_task_starts_from_the_adapter_of_the_last():
  ran = run(mos(TOY, CAPACITY, peft=FC, epochs=1, samples=6), TOY)
  for t in (1, 2):
    before = ran.last('end', t - 1).state
    equal(ran.last('begin', t).state.params['delta'], before.params['delta'])
    equal(take(before.memory['bank'], t - 1), before.params['delta'])


def test_odd_numbers_are_refused():
  with pytest.raises(ValueError, match=r'expected merged in \[0, 1\], got 1.5'):
    mos(TOY, CAPACITY, peft=FC, merged=1.5)
  with pytest.raises(ValueError, match='rounds must be at least 1'):
    mos(TOY, CAPACITY, peft=FC, rounds=0)
