"""Continual-learning methods as pure functions, and wrappers around them.

A method or wrapper has one line here. `METHODS` and `WRAPPERS` are all of them by name.
"""

from pecft_jax import about as _about
from pecft_jax.continual.adapters.acl import acl as acl
from pecft_jax.continual.adapters.aper import aper as aper
from pecft_jax.continual.adapters.cada import cada as cada
from pecft_jax.continual.adapters.ease import ease as ease
from pecft_jax.continual.adapters.lae import lae as lae
from pecft_jax.continual.adapters.moe_adapters import moe_adapters as moe_adapters
from pecft_jax.continual.adapters.mos import mos as mos
from pecft_jax.continual.adapters.sema import sema as sema
from pecft_jax.continual.adapters.ssiat import ssiat as ssiat
from pecft_jax.continual.adapters.tuna import tuna as tuna
from pecft_jax.continual.bounds.finetune import finetune as finetune
from pecft_jax.continual.bounds.finetune import joint as joint
from pecft_jax.continual.bounds.language_model import language_model as language_model
from pecft_jax.continual.bounds.masked import masked_finetune as masked_finetune
from pecft_jax.continual.bounds.masked import masked_probe as masked_probe
from pecft_jax.continual.bounds.one_task import single_task as single_task
from pecft_jax.continual.lowrank.cllora import cllora as cllora
from pecft_jax.continual.lowrank.clora import clora as clora
from pecft_jax.continual.lowrank.ewclora import ewclora as ewclora
from pecft_jax.continual.lowrank.gpm import gpm as gpm
from pecft_jax.continual.lowrank.hide_lora import hide_lora as hide_lora
from pecft_jax.continual.lowrank.inflora import inflora as inflora
from pecft_jax.continual.lowrank.keeplora import keeplora as keeplora
from pecft_jax.continual.lowrank.loda import loda as loda
from pecft_jax.continual.lowrank.lorasub import lorasub as lorasub
from pecft_jax.continual.lowrank.olora import olora as olora
from pecft_jax.continual.lowrank.online_lora import online_lora as online_lora
from pecft_jax.continual.lowrank.routed_lora import routed_lora as routed_lora
from pecft_jax.continual.lowrank.sdlora import sdlora as sdlora
from pecft_jax.continual.lowrank.slao import slao as slao
from pecft_jax.continual.lowrank.splitlora import splitlora as splitlora
from pecft_jax.continual.memory.buffer import Buffer as Buffer
from pecft_jax.continual.memory.moments import Moments as Moments
from pecft_jax.continual.memory.statistics import ClassSums as ClassSums
from pecft_jax.continual.memory.views import shifts_and_flips as shifts_and_flips
from pecft_jax.continual.merging.emr import emr as emr
from pecft_jax.continual.merging.merged import merged as merged
from pecft_jax.continual.prompts.coda_prompt import coda_prompt as coda_prompt
from pecft_jax.continual.prompts.cprompt import cprompt as cprompt
from pecft_jax.continual.prompts.dualprompt import dualprompt as dualprompt
from pecft_jax.continual.prompts.hide_prompt import hide_prompt as hide_prompt
from pecft_jax.continual.prompts.l2p import Pool as Pool
from pecft_jax.continual.prompts.l2p import l2p as l2p
from pecft_jax.continual.prompts.progressive_prompts import (
  progressive_prompts as progressive_prompts,
)
from pecft_jax.continual.prompts.sprompts import sprompts as sprompts
from pecft_jax.continual.replay.gdumb import gdumb as gdumb
from pecft_jax.continual.replay.icarl import icarl as icarl
from pecft_jax.continual.statistics.fecam import fecam as fecam
from pecft_jax.continual.statistics.flycl import flycl as flycl
from pecft_jax.continual.statistics.ranpac import ranpac as ranpac
from pecft_jax.continual.statistics.simplecil import simplecil as simplecil
from pecft_jax.continual.statistics.slca import slca as slca
from pecft_jax.continual.statistics.slda import slda as slda
from pecft_jax.continual.wrappers.agem import agem as agem
from pecft_jax.continual.wrappers.aligned import aligned as aligned
from pecft_jax.continual.wrappers.der import der as der
from pecft_jax.continual.wrappers.derpp import derpp as derpp
from pecft_jax.continual.wrappers.er import er as er
from pecft_jax.continual.wrappers.er_ace import er_ace as er_ace
from pecft_jax.continual.wrappers.ewc import ewc as ewc
from pecft_jax.continual.wrappers.ewc_separate import ewc_separate as ewc_separate
from pecft_jax.continual.wrappers.gem import gem as gem
from pecft_jax.continual.wrappers.lwf import lwf as lwf
from pecft_jax.continual.wrappers.mas import mas as mas
from pecft_jax.continual.wrappers.ogd import ogd as ogd
from pecft_jax.continual.wrappers.ovor import ovor as ovor
from pecft_jax.continual.wrappers.rwalk import rwalk as rwalk
from pecft_jax.continual.wrappers.si import si as si

METHODS = _about.factories(globals(), 'method')
WRAPPERS = _about.factories(globals(), 'wrapper')

__all__ = _about.exported(globals())  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]
