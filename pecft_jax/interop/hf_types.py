"""The types of adapters of huggingface/peft that can be written and read; each is one line."""

from pecft_jax.interop.hf_type import HfType
from pecft_jax.interop.types.ia3 import IA3 as IA3
from pecft_jax.interop.types.lora import LORA as LORA

TYPES: dict[str, HfType] = {
  each.peft_type: each
  for each in sorted(
    (each for each in globals().values() if isinstance(each, HfType)), key=lambda t: t.peft_type
  )
}

# Those of which a file does not hold the function that was trained.
REFUSED = {
  'ADAMSS': 'its clusters of outputs are not in the file',
  'PSOFT': 'the signs of the singular vectors that it is written in are not in the file',
  'SHADOW': 'it is a network beside the model, and no change of its layers',
  'XLORA': "peft itself loses the classifier's first layer when it writes one",
}
