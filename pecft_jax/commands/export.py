"""`pecft export`: what a run has learned, for other machines and libraries."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from rich.console import Console

from pecft_jax.commands.learned import Which, learner_of
from pecft_jax.interop import naming_of, save_hf_peft
from pecft_jax.interop.check import check_saved
from pecft_jax.learners import Learner, NotRemade, save_bundle, save_stablehlo
from pecft_jax.learners.from_settings import made_from
from pecft_jax.local import local_path
from pecft_jax.settings import settings_of
from pecft_jax.text import size, unknown


class Format(NamedTuple):
  """A format of a learner in files.

  Attributes:
    save: `(learner, directory, weights) -> None`, with the weights of the backbone, or without.
    needs: `(learner, weights) -> text`, what reads it, and what else that takes.
    choice: whether weights can be left out.
  """

  save: Callable[[Learner, pathlib.Path, bool], None]
  needs: Callable[[Learner, bool], str]
  choice: bool = False


def export(which: Which, out: pathlib.Path, form: str, weights: bool, console: Console) -> int:
  if form not in FORMATS:
    raise unknown('format', form, FORMATS)
  chosen = FORMATS[form]
  if not weights and not chosen.choice:
    names = [name for name, each in FORMATS.items() if each.choice]
    raise ValueError(f'--no-weights is for --format {" or ".join(names)}, got {form}')
  out = local_path(out).resolve()  # Before the directory is changed for an experiment.
  learner = learner_of(which)
  chosen.save(learner, out, weights)
  written = size(sum(file.stat().st_size for file in out.iterdir()))
  tasks = 'task 1' if learner.tasks == 1 else f'tasks 1 to {learner.tasks}'
  console.print(
    f'{learner.method.name} after {tasks} → {out}: {form}, {written}; '
    f'{chosen.needs(learner, weights)}',
    highlight=False,
    markup=False,
    soft_wrap=True,
  )
  return 0


def _save_hf_peft(learner: Learner, out: pathlib.Path, weights: bool) -> None:
  del weights  # An adapter never has them.
  if learner.method.adapted is None:
    raise ValueError(
      f'{learner.method.name} has no single delta that an adapter of that library could hold: '
      '--format bundle and --format stablehlo take any method'
    )
  adapted, model = learner.adapted, learner.model
  facts = {
    key: learner.facts[key]
    for key in ('method', 'training', 'identity', 'accepted')
    if key in learner.facts
  }
  card = card_of(learner, adapted.head is not None)
  facts = {**facts, 'tasks': learner.tasks}
  save_hf_peft(out, model.backbone, adapted, model.params, card=card, facts=facts)
  check_saved(out, model.backbone, adapted, model.params)


def _hf_peft_needs(learner: Learner, weights: bool) -> str:
  del weights
  backbone = learner.model.backbone
  return (
    f'peft.PeftModel reads it, on {naming_of(backbone).model} with the weights of {backbone.name}'
  )


def _bundle_needs(learner: Learner, weights: bool) -> str:
  needs = [] if weights else [f'the weights of {learner.model.backbone.name}']
  try:
    made_from(settings_of(learner.method))
  except NotRemade:
    needs.append('the experiment, as --file, or its method and model in code')
  reads = 'pecft predict and load_bundle of pecft_jax.learners read it'
  return f'{reads}, given {" and ".join(needs)}' if needs else f'{reads}, and need nothing else'


def _stablehlo_needs(learner: Learner, weights: bool) -> str:
  del learner, weights
  return 'jax and safetensors run it, as its README.md says'


FORMATS = {
  'hf-peft': Format(_save_hf_peft, _hf_peft_needs),
  'bundle': Format(
    lambda learner, out, weights: save_bundle(learner, out, weights=weights),
    _bundle_needs,
    choice=True,
  ),
  'stablehlo': Format(
    lambda learner, out, weights: save_stablehlo(learner, out),
    _stablehlo_needs,
  ),
}


def card_of(learner: Learner, head: bool) -> str:
  """The README.md of an adapter: what is needed to use it.

  Args:
    learner: whose facts are those of a run.
    head: whether its classifier is part of the adapter.
  """
  backbone = learner.model.backbone
  naming, identity = naming_of(backbone), learner.facts.get('identity') or {}
  capacity = learner.method.capacity
  on = f' on {identity["benchmark"]}' if 'benchmark' in identity else ''
  digest = f'\n(sha256 {identity["backbone_sha256"]})' if 'backbone_sha256' in identity else ''
  lines = [
    '---',
    'library_name: peft',
    '---',
    f'# {learner.method.name}{on}, after {learner.tasks} of {capacity.tasks} tasks',
    '',
    f'For {naming.model} with the weights of {backbone.name}{digest}.',
    f'Inputs of shape {list(backbone.inputs.shape)}: {backbone.inputs.values}.',
    '',
  ]
  if head:
    lines += [
      f'The classifier `{naming.head}` has {len(learner.class_names)} outputs and a bias: give '
      'the model one like that first. Classes learned so far, by output:',
      '',
      *(f'- {i}: {name}' for i, name in enumerate(learner.class_names) if learner.seen[i]),
    ]
  else:
    lines += ['The classifier of this method reads other features, and is not part of the adapter.']
  return '\n'.join(lines) + '\n'
