"""What a transform makes of a site's result, beside the result without it."""

from collections.abc import Callable
from typing import Any

from pecft_jax.typing import Array, Delta, Site


def beside_the_plain(
  who: str,
  run: Callable[..., Array],
  delta: Delta,
  site: Site,
  next_fn: Callable[..., Array],
  *args: Any,
) -> tuple[Array, Array]:
  """The result of a site with a transform and without, of one call of `next_fn`.

  Args:
    who: asks, for the message.
    run: the transform's `intercept`.
    delta: its delta.
    site: that is passed.
    next_fn: the rest of the site.
    *args: of the site.

  Raises:
    ValueError: if the transform changes what the site reads, so that there is no result without it.

  >>> twice = lambda delta, site, next_fn, x: 2 * next_fn(x)
  >>> beside_the_plain('mine', twice, {}, Site('norm', 'norm'), lambda x: x + 1, 2)
  (6, 3)
  """
  plain: list[Array] = []

  def once(*given: Any) -> Array:
    if len(given) != len(args) or any(a is not b for a, b in zip(given, args, strict=True)):
      raise ValueError(
        f'{who}: expected a transform that changes what sites give, such as adapters or LoRA; at '
        f'{site.kind!r} site {site.path!r} this one changes what the site reads'
      )
    plain.append(next_fn(*given))
    return plain[0]

  out = run(delta, site, once, *args)
  assert len(plain) == 1, 'a transform calls next_fn once'
  return out, plain[0]
