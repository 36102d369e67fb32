"""Texts of Markov chains, a chain for each domain: what a tiny language model can learn."""

import numpy as np

from pecft_jax.data import Scenario, Split, TaskData
from pecft_jax.data.scenario import split_digest


def chains(domains: int, vocabulary: int, *, sure: float = 0.9, seed: int = 1) -> list[np.ndarray]:
  """Transitions [V, V] of each domain: one word follows another with probability `sure`."""
  rng = np.random.default_rng(seed)
  even = (1 - sure) / vocabulary
  return [sure * np.eye(vocabulary)[rng.permutation(vocabulary)] + even for _ in range(domains)]


def texts(chain: np.ndarray, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
  """Token ids [count, length]."""
  ids = rng.integers(0, len(chain), (count, length))
  for t in range(1, length):
    draw = rng.random((count, 1))
    ids[:, t] = np.minimum((chain[ids[:, t - 1]].cumsum(1) < draw).sum(1), len(chain) - 1)
  return ids.astype(np.int32)


def markov_domains(
  domains: int = 3,
  *,
  vocabulary: int = 20,
  length: int = 12,
  train: int = 200,
  test: int = 60,
  seed: int = 0,
) -> Scenario:
  """One domain after another; targets [n, T] are the tokens behind those that are read."""
  rng = np.random.default_rng(seed)
  tables = chains(domains, vocabulary)
  ids = np.concatenate([texts(chain, train + test, length + 1, rng) for chain in tables])

  def split(low: int, high: int) -> Split:
    rows = np.arange(low, high)
    return Split(ids[:, :-1], rows, ids[rows, 1:])

  starts = [(train + test) * i for i in range(domains)]
  tasks = tuple(
    TaskData(f'domain_{i}', (0,), split(at, at + train), split(at + train, at + train + test))
    for i, at in enumerate(starts)
  )
  digest = split_digest('domain', (0,), tasks)
  return Scenario('markov', 'domain', (0,), ('text',), tasks, digest)
