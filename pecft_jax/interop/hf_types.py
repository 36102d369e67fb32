"""The types of adapters of huggingface/peft that can be written and read; each is one line."""

from pecft_jax.interop.hf_type import HfType
from pecft_jax.interop.types.adalora import ADALORA as ADALORA
from pecft_jax.interop.types.adaption_prompt import ADAPTION_PROMPT as ADAPTION_PROMPT
from pecft_jax.interop.types.boft import BOFT as BOFT
from pecft_jax.interop.types.c3a import C3A as C3A
from pecft_jax.interop.types.delora import DELORA as DELORA
from pecft_jax.interop.types.fourierft import FOURIERFT as FOURIERFT
from pecft_jax.interop.types.hira import HIRA as HIRA
from pecft_jax.interop.types.hra import HRA as HRA
from pecft_jax.interop.types.ia3 import IA3 as IA3
from pecft_jax.interop.types.ln_tuning import LN_TUNING as LN_TUNING
from pecft_jax.interop.types.loha import LOHA as LOHA
from pecft_jax.interop.types.lokr import LOKR as LOKR
from pecft_jax.interop.types.lora import LORA as LORA
from pecft_jax.interop.types.miss import MISS as MISS
from pecft_jax.interop.types.oft import OFT as OFT
from pecft_jax.interop.types.osf import OSF as OSF
from pecft_jax.interop.types.prefix_tuning import CARTRIDGE as CARTRIDGE
from pecft_jax.interop.types.prefix_tuning import PREFIX_TUNING as PREFIX_TUNING
from pecft_jax.interop.types.prompt_tuning import CPT as CPT
from pecft_jax.interop.types.prompt_tuning import P_TUNING as P_TUNING
from pecft_jax.interop.types.prompt_tuning import PROMPT_TUNING as PROMPT_TUNING
from pecft_jax.interop.types.randlora import RANDLORA as RANDLORA
from pecft_jax.interop.types.shira import SHIRA as SHIRA
from pecft_jax.interop.types.trainable_tokens import TRAINABLE_TOKENS as TRAINABLE_TOKENS
from pecft_jax.interop.types.vera import VERA as VERA

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
