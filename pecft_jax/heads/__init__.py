"""Heads, which classify features: parts that methods take, as in `finetune(..., head=cosine())`.

A head has one line here. `HEADS` is all of them by name.
"""

from pecft_jax import about as _about
from pecft_jax.heads.angles import CosineHead as CosineHead
from pecft_jax.heads.angles import cosine as cosine
from pecft_jax.heads.dot_products import linear as linear
from pecft_jax.heads.radial import KacHead as KacHead
from pecft_jax.heads.radial import kac as kac
from pecft_jax.heads.slots import with_slots as with_slots
from pecft_jax.typing import LinearHead as LinearHead

HEADS = _about.factories(globals(), 'head')

__all__ = _about.exported(globals())  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]
