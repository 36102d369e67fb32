"""Adapters of which a router of each task selects a few for each example.

As in MoE-Adapters (Yu et al., 2024, arXiv:2403.11549), with the noisy top-k gating of Shazeer et
al., 2017, arXiv:1701.06538.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.continual.adapters.mixture import ARGUMENT, weighted
from pecft_jax.continual.core import model
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta, Read
from pecft_jax.peft.sites import site_key
from pecft_jax.typing import Array, Backbone, Delta, Key, Params, PeftTransform

# Added to the deviation of the noise, so that no router can get rid of it.
_LEAST = 1e-2


class Router(NamedTuple):
  """The scores of E experts, and of the noise that is added to them in training."""

  weight: Array  # [D, E], zeros at init.
  spread: Array  # [D, E], zeros at init.


class Routed(NamedTuple):
  """E experts of a site, with the routers of T tasks."""

  experts: BottleneckDelta  # [E, ...]
  routers: Router  # [T, D, E]
  task: Array  # [B] int32, whose router each example goes through.
  noise: Array | None = None  # [B, E], standard normal, in training.
  keys: Key | None = None  # [E], of the experts' dropout, in training.


def routed(peft: PeftTransform, experts: int, tasks: int, top_k: int, read: Read) -> PeftTransform:
  """Experts at each site of an adapter, weighted for each example by its first token.

  A forward pass with a key is noisy: scores have noise, and experts their dropout. All experts are
  computed, also those of weight 0, since shapes must not depend on the data.

  Args:
    peft: what an expert is.
    experts: E
    tasks: T
    top_k: experts that an example is given to.
    read: what routers read: the branch's input after its norm, or before it.
  """
  run_one = peft.intercept
  assert run_one is not None

  def init(key, sites, params):
    keys = jax.random.split(key, experts)
    adapters = jax.vmap(lambda k: peft.init(k, sites, params))(keys)
    width = next(iter(adapters.values())).down.shape[1]
    none = Router(*(jnp.zeros((tasks, width, experts)) for _ in range(2)))
    return {p: Routed(each, none, jnp.zeros(1, jnp.int32)) for p, each in adapters.items()}

  def with_noise(delta, key):
    def one(path, routed):
      k_noise, k_drop = jax.random.split(site_key(key, path))
      noise = jax.random.normal(k_noise, (routed.task.shape[0], experts))
      keys = None if peft.with_dropout is None else jax.random.split(k_drop, experts)
      return routed._replace(noise=noise, keys=keys)

    return {path: one(path, each) for path, each in delta.items()}

  def intercept(delta, site, next_fn, *args):
    if site.kind != 'sublayer' or site.path not in delta:
      return next_fn(*args)
    routed, y = delta[site.path], next_fn(*args)
    gate = gates(routed, args[ARGUMENT[read]][:, 0], top_k)

    def one(adapter):
      alone = {site.path: adapter if routed.keys is None else adapter[0]}
      if routed.keys is not None and peft.with_dropout is not None:
        alone = peft.with_dropout(alone, adapter[1])
      # An adapter reads what goes into the branch or what comes out, and adds to it.
      return run_one(alone, site, lambda *_: y, *args) - y

    each = routed.experts if routed.keys is None else (routed.experts, routed.keys)
    return y + weighted(one, each, gate.astype(y.dtype))

  return PeftTransform(init, intercept, with_dropout=with_noise)


class RoutedModel(NamedTuple):
  """A backbone with experts, as functions of their state, by the path of the site."""

  experts: Callable[[Key, Params], Delta]  # (key, frozen) -> [E, ...]
  # (frozen, experts, routers [T, ...], x, task [B], key=None) -> [B, D]
  features: Callable[..., Array]
  given: Callable[..., dict[str, Array]]  # The same arguments but the key -> [B, E] bool.


def routed_model(
  backbone: Backbone, peft: PeftTransform, experts: int, tasks: int, top_k: int, read: Read
) -> RoutedModel:
  """A backbone with `routed` on it: its features, and which experts examples are given to."""
  net = model(backbone, routed(peft, experts, tasks, top_k, read))

  def fresh(key, frozen):
    return {path: each.experts for path, each in net.init(key, frozen).items()}

  def joined(experts, routers, task):
    return {path: Routed(each, routers[path], task) for path, each in experts.items()}

  def features(frozen, experts, routers, x, task, key=None):
    return net.features(frozen, joined(experts, routers, task), x, key)

  def given(frozen, experts, routers, x, task):
    def watch(site, args, out):
      del out
      there = site.kind == 'sublayer' and site.path in experts
      return args[ARGUMENT[read]][:, 0] if there else None

    delta = joined(experts, routers, task)
    taps = net.run(frozen, delta, x, watch=watch).taps
    return {path: gates(delta[path], taps[f'sublayer:{path}'], top_k) > 0 for path in experts}

  return RoutedModel(fresh, features, given)


def gates(routed: Routed, x: Array, top_k: int) -> Array:
  """The weight of each expert for each example [B, E], of first tokens [B, D].

  softmax(TopK(x W + noise (softplus(x W_n) + 0.01))), 0 for experts that are not among the top k.
  """
  scores = _scores(routed.routers.weight, routed.task, x)
  if routed.noise is not None:
    deviation = jax.nn.softplus(_scores(routed.routers.spread, routed.task, x)) + _LEAST
    scores = scores + routed.noise * deviation
  best, chosen = jax.lax.top_k(scores, top_k)
  shares = jax.nn.softmax(best)
  return (jax.nn.one_hot(chosen, scores.shape[-1]) * shares[..., None]).sum(1)


def need_first_token(name: str, backbone: Backbone) -> None:
  """Raises ValueError for a backbone without a class token, whose first token says little."""
  leads = [spec.site.lead for spec in backbone.sites if spec.site.path == 'encoder']
  if not any(leads):
    raise ValueError(
      f'the routers of {name} read the class token, and {backbone.name} has none that stands first'
    )


def _scores(weights: Array, task: Array, x: Array) -> Array:
  """[T, D, E], [B] int32, [B, D] -> [B, E] float32"""
  each = jnp.einsum('bd,tde->bte', x.astype(jnp.float32), weights, precision='highest')
  return jnp.take_along_axis(each, task[:, None, None], 1)[:, 0]
