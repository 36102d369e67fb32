"""What contestants of the benches share: sizes, settings, and the record of a contest."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

CLASSES = 100
PATCH = 16  # Side of a ViT's patches.
ADAPTER = 64  # Width of EASE's adapters.
PROMPTS = 40  # Tokens that L2P inserts: 4 prompts of 10.


class Sizes(NamedTuple):
  """Of a transformer."""

  width: int
  depth: int
  heads: int
  hidden: int
  kv_heads: int = 0  # Of a decoder.
  vocabulary: int = 0


VIT_B = Sizes(768, 12, 12, 3072)
VIT_TI = Sizes(192, 12, 3, 768)
VIT_TINY = Sizes(48, 1, 3, 96)
BY_HAND = VIT_TI, 32  # The sizes and the batch of `bench_by_hand.py`.
LLAMA_58M = Sizes(512, 8, 8, 1376, 8, 32_000)
LLAMA_1B = Sizes(2048, 16, 32, 8192, 8, 128_256)
LLAMA_8B = Sizes(4096, 32, 32, 14_336, 8, 128_256)
LLAMA_TINY = Sizes(32, 2, 4, 64, 2, 97)


class Texts(NamedTuple):
  """A LoRA on a decoder."""

  sizes: Sizes
  batch: int
  length: int
  everywhere: bool = False  # On all linear layers; otherwise on queries and values.
  rank: int = 8
  alpha: float = 16.0
  dropout: float = 0.0
  next_tokens: bool = False  # A language model; otherwise a classifier of whole texts.


class Rig(NamedTuple):
  """Sizes and settings of all contests of a run."""

  image: int  # Side of the images.
  vit: Sizes  # Of steps and features.
  batch: int
  subspaces_vit: Sizes  # Of EASE's prediction.
  subspaces_batch: int
  subspaces: int  # Tasks that EASE has seen.
  texts: Mapping[str, Texts]  # By the name of the contest.
  matmul: int  # Rows and columns of the matrices whose product is the roofline.
  dtype: str = 'float32'  # Of computation and of frozen weights.
  scan: bool = False  # Whether our decoders are stacked.
  remat: bool = False  # Whether blocks of our decoders are computed again in the backward pass.
  attention: str = 'chosen'  # Ours: 'chosen' or 'xla'; peers: 'sdpa' or 'eager'.
  compiled: bool = False  # Whether peers go through `torch.compile`.


ON_CPU = Rig(
  image=224,
  vit=VIT_B,
  batch=8,
  subspaces_vit=VIT_TI,
  subspaces_batch=8,
  subspaces=20,
  texts={
    'llama': Texts(LLAMA_58M, 8, 128),
    'llama_all': Texts(LLAMA_58M, 8, 128, everywhere=True),
  },
  matmul=2048,
)
ON_ACCELERATOR = Rig(
  image=224,
  vit=VIT_B,
  batch=256,
  subspaces_vit=VIT_B,
  subspaces_batch=256,
  subspaces=20,
  texts={
    'llama1024': Texts(LLAMA_1B, 8, 1024),
    'llama2048': Texts(LLAMA_1B, 8, 2048),
    # As in the published row; its 16 accumulated micro-batches are 16 steps here.
    'llama8b': Texts(LLAMA_8B, 2, 4096, True, 16, 32.0, 0.1, next_tokens=True),
    'llama8b_no_dropout': Texts(LLAMA_8B, 2, 4096, True, 16, 32.0, next_tokens=True),
  },
  matmul=8192,
  dtype='bfloat16',
  scan=True,
)


def tiny(rig: Rig) -> Rig:
  """The same contests in sizes that take no time."""
  shrink = lambda texts: texts._replace(sizes=LLAMA_TINY, batch=2, length=8)
  return rig._replace(
    image=32,
    vit=VIT_TINY,
    batch=2,
    subspaces_vit=VIT_TINY,
    subspaces_batch=2,
    subspaces=2,
    texts={name: shrink(texts) for name, texts in rig.texts.items()},
    matmul=128,
  )


class Contest(NamedTuple):
  """A contestant that is ready.

  Attributes:
    call: does the work once; on an accelerator it may return before the work is done.
    facts: of its program: GFLOP as XLA counts them, temporaries in MB, seconds of compilation.
    ready: called before each call, untimed; None if nothing is to be done.
  """

  call: Callable[[], Any]
  facts: Mapping[str, float] = {}
  ready: Callable[[], Any] | None = None
