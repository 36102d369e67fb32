"""Parameter-efficient fine-tuning as pure functions: transforms, and operations on them.

A transform has one line here. `PEFTS` is all of them by name. Flax linen modules that are not of
this library: `pecft_jax.peft.linen_bridge`.
"""

from pecft_jax import about as _about
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta as BottleneckDelta
from pecft_jax.peft.adapters.bottleneck import adaptformer as adaptformer
from pecft_jax.peft.adapters.bottleneck import bottleneck as bottleneck
from pecft_jax.peft.adapters.bottleneck import houlsby as houlsby
from pecft_jax.peft.adapters.bottleneck import parallel_adapter as parallel_adapter
from pecft_jax.peft.adapters.bottleneck import pfeiffer as pfeiffer
from pecft_jax.peft.arithmetic import concatenated as concatenated
from pecft_jax.peft.arithmetic import dropped as dropped
from pecft_jax.peft.arithmetic import elected as elected
from pecft_jax.peft.arithmetic import pruned as pruned
from pecft_jax.peft.arithmetic import recompressed as recompressed
from pecft_jax.peft.arithmetic import weighted as weighted
from pecft_jax.peft.compose import at_layers as at_layers
from pecft_jax.peft.compose import bank as bank
from pecft_jax.peft.compose import chain as chain
from pecft_jax.peft.compose import mix as mix
from pecft_jax.peft.compose import nothing as nothing
from pecft_jax.peft.compose import take as take
from pecft_jax.peft.halves import combine as combine
from pecft_jax.peft.halves import mask_of as mask_of
from pecft_jax.peft.halves import masked as masked
from pecft_jax.peft.halves import partition as partition
from pecft_jax.peft.halves import split_kept as split_kept
from pecft_jax.peft.lowrank.adalora import AdaloraDelta as AdaloraDelta
from pecft_jax.peft.lowrank.adalora import adalora as adalora
from pecft_jax.peft.lowrank.delora import DeloraDelta as DeloraDelta
from pecft_jax.peft.lowrank.delora import delora as delora
from pecft_jax.peft.lowrank.dora import DoraDelta as DoraDelta
from pecft_jax.peft.lowrank.dora import dora as dora
from pecft_jax.peft.lowrank.hira import HiraDelta as HiraDelta
from pecft_jax.peft.lowrank.hira import hira as hira
from pecft_jax.peft.lowrank.krona import KronaDelta as KronaDelta
from pecft_jax.peft.lowrank.krona import krona as krona
from pecft_jax.peft.lowrank.loha import LohaDelta as LohaDelta
from pecft_jax.peft.lowrank.loha import loha as loha
from pecft_jax.peft.lowrank.lokr import LokrDelta as LokrDelta
from pecft_jax.peft.lowrank.lokr import LokrFactors as LokrFactors
from pecft_jax.peft.lowrank.lokr import lokr as lokr
from pecft_jax.peft.lowrank.lora import LoraDelta as LoraDelta
from pecft_jax.peft.lowrank.lora import lora as lora
from pecft_jax.peft.lowrank.lora import rslora as rslora
from pecft_jax.peft.lowrank.lora_fa import LoraFaDelta as LoraFaDelta
from pecft_jax.peft.lowrank.lora_fa import lora_fa as lora_fa
from pecft_jax.peft.lowrank.lora_xs import LoraXsDelta as LoraXsDelta
from pecft_jax.peft.lowrank.lora_xs import lora_xs as lora_xs
from pecft_jax.peft.lowrank.miss import MissDelta as MissDelta
from pecft_jax.peft.lowrank.miss import miss as miss
from pecft_jax.peft.lowrank.pissa import PissaDelta as PissaDelta
from pecft_jax.peft.lowrank.pissa import pissa as pissa
from pecft_jax.peft.lowrank.randlora import RandloraDelta as RandloraDelta
from pecft_jax.peft.lowrank.randlora import randlora as randlora
from pecft_jax.peft.lowrank.rosa import RosaDelta as RosaDelta
from pecft_jax.peft.lowrank.rosa import rosa as rosa
from pecft_jax.peft.lowrank.svft import SvftDelta as SvftDelta
from pecft_jax.peft.lowrank.svft import svft as svft
from pecft_jax.peft.lowrank.vera import VeraDelta as VeraDelta
from pecft_jax.peft.lowrank.vera import vera as vera
from pecft_jax.peft.merge import Merged as Merged
from pecft_jax.peft.merge import merge_error as merge_error
from pecft_jax.peft.merge import merged as merged
from pecft_jax.peft.merge import unmerge as unmerge
from pecft_jax.peft.multiplicative.boft import BoftDelta as BoftDelta
from pecft_jax.peft.multiplicative.boft import boft as boft
from pecft_jax.peft.multiplicative.hra import HraDelta as HraDelta
from pecft_jax.peft.multiplicative.hra import hra as hra
from pecft_jax.peft.multiplicative.oft import OftDelta as OftDelta
from pecft_jax.peft.multiplicative.oft import oft as oft
from pecft_jax.peft.own_deltas import per_example as per_example
from pecft_jax.peft.scaling.ia3 import Ia3Delta as Ia3Delta
from pecft_jax.peft.scaling.ia3 import ia3 as ia3
from pecft_jax.peft.scaling.ia3 import scaled_inputs as scaled_inputs
from pecft_jax.peft.scaling.ia3 import scaled_outputs as scaled_outputs
from pecft_jax.peft.scaling.ssf import SsfDelta as SsfDelta
from pecft_jax.peft.scaling.ssf import ssf as ssf
from pecft_jax.peft.selective.fish import FishDelta as FishDelta
from pecft_jax.peft.selective.fish import fish as fish
from pecft_jax.peft.selective.select import bitfit as bitfit
from pecft_jax.peft.selective.select import full as full
from pecft_jax.peft.selective.select import linear_probe as linear_probe
from pecft_jax.peft.selective.select import ln_tuning as ln_tuning
from pecft_jax.peft.selective.select import partial as partial
from pecft_jax.peft.selective.select import select_weights as select_weights
from pecft_jax.peft.sites import per_site as per_site
from pecft_jax.peft.spectral.c3a import C3aDelta as C3aDelta
from pecft_jax.peft.spectral.c3a import c3a as c3a
from pecft_jax.peft.spectral.fourierft import FourierftDelta as FourierftDelta
from pecft_jax.peft.spectral.fourierft import fourierft as fourierft
from pecft_jax.peft.starting import starting_from as starting_from
from pecft_jax.peft.tokens.prefix import PrefixDelta as PrefixDelta
from pecft_jax.peft.tokens.prefix import prefix as prefix
from pecft_jax.peft.tokens.prompt import PromptDelta as PromptDelta
from pecft_jax.peft.tokens.prompt import prompt as prompt
from pecft_jax.peft.tokens.prompt import prompt_tuning as prompt_tuning
from pecft_jax.peft.tokens.prompt import vpt_deep as vpt_deep
from pecft_jax.peft.tokens.prompt import vpt_shallow as vpt_shallow
from pecft_jax.peft.weights import Weights as Weights
from pecft_jax.peft.weights import weight_sites as weight_sites

PEFTS = _about.factories(globals(), 'transform')

__all__ = _about.exported(globals())  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]
