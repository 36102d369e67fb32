"""Where a backbone may be changed."""

from typing import Any, NamedTuple, Protocol

from pecft_jax.typing.arrays import Array


class Site(NamedTuple):
  """A named insertion point of a backbone.

  Attributes:
    kind: one of `SITE_KINDS`.
    path: path of the site's weights in the backbone's parameters, as in
      `block_3/attn/q`; for sites without weights, of the module around them.
    lead: for `tokens` sites, how many tokens stand before inserted ones (the
      class token of a ViT: 1). With 0, the tokens that are read come after them: where
      a backbone gives back fewer tokens than it got, these are the last ones.
    stack: name of the stack of blocks that it belongs to; `''` in a backbone
      with one stack.
    layer: number of its block in that stack, counted from 0; None outside the
      blocks.
  """

  kind: str
  path: str
  lead: int = 0
  stack: str = ''
  layer: int | None = None


SITE_KINDS = ('linear', 'norm', 'attend', 'sublayer', 'tokens')


class Watch(Protocol):
  """Reads values from the sites of a forward pass; see `Backbone.apply`."""

  def __call__(self, site: Site, args: tuple[Any, ...], out: Array, /) -> Any:
    """Returns a pytree of arrays, or None where nothing is wanted.

    Args:
      site: that is passed.
      args: of the site, as its kind has them: (x [B, T, D], w, b) of a linear one.
      out: what the site gave, changes by a transform included.
    """
    ...


class SiteSpec(NamedTuple):
  """A site with the shapes that pass through it: what `PeftTransform.init` reads."""

  site: Site
  args: tuple[Any, ...]  # jax.ShapeDtypeStruct of each argument, None where absent.
  out: Any  # jax.ShapeDtypeStruct of the result.
