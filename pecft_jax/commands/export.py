"""`pecft export`: the adapter of a run, for other libraries."""

import contextlib
import pathlib
from typing import Any

import numpy as np
from rich.console import Console

from pecft_jax.commands.failures import quiet_libraries
from pecft_jax.commands.files import find_experiment, load_experiment, made, parse_flags
from pecft_jax.commands.run import RunFlags
from pecft_jax.local import local_path
from pecft_jax.sources import files_beside
from pecft_jax.text import unknown

FORMATS = ('hf-peft',)


def export(
  directory: pathlib.Path,
  out: pathlib.Path,
  task: int | None,
  form: str,
  seed: int | None,
  file: str | None,
  accept_changes: bool,
  console: Console,
) -> int:
  if form not in FORMATS:
    raise unknown('format', form, FORMATS)
  from pecft_jax.workdir.claim import changed_files, files_message, read_config

  out, directory = local_path(out).resolve(), local_path(directory).resolve()
  config = read_config(directory)
  command = config.get('command') or {}
  file = command.get('file') if file is None else str(local_path(find_experiment(file)).resolve())
  if file is None or 'arguments' not in command:
    raise ValueError(
      f'{directory} does not record the command that made it, as pecft run does; in code, '
      'adapted_after of pecft_jax.train and save_hf_peft of pecft_jax.interop do the same'
    )
  # Flags may hold paths relative to the directory of the original command.
  there = pathlib.Path(command['directory'])
  with contextlib.chdir(there) if there.is_dir() else contextlib.nullcontext():
    function = load_experiment(file)
    changed = changed_files(config.get('files') or {}, files_beside(file))
    if changed and not accept_changes:
      raise ValueError(
        f'{files_message(changed)}: running it now may make another experiment than {directory} '
        'holds; --accept-changes if what was changed has no part in what is computed'
      )
    values, _ = parse_flags(function, command['arguments'], f'pecft run {file}', RunFlags)
    experiment = made(function, values)
  from pecft_jax.interop import save_hf_peft
  from pecft_jax.train import adapted_after
  from pecft_jax.train.experiment import configuration, identified

  experiment = identified(experiment)
  with quiet_libraries():
    found = adapted_after(experiment, directory, task, seed=seed)
  card = card_of(experiment, found.tasks, found.adapted.head is not None)
  facts = {**configuration(experiment), 'tasks': found.tasks, 'accepted': changed}
  save_hf_peft(out, experiment.backbone, found.adapted, experiment.frozen, card=card, facts=facts)
  tasks = 'task 1' if found.tasks == 1 else f'tasks 1 to {found.tasks}'
  console.print(f'{experiment.method.name} after {tasks} → {out}', highlight=False, soft_wrap=True)
  return 0


def card_of(experiment: Any, tasks: int, head: bool) -> str:
  """The README.md of the adapter: what is needed to use it."""
  from pecft_jax.data.scenario import task_masks
  from pecft_jax.interop import naming_of
  from pecft_jax.train.experiment import describe

  backbone, scenario = experiment.backbone, experiment.scenario
  naming, facts = naming_of(backbone), describe(experiment)
  seen = np.flatnonzero(task_masks(scenario, tasks - 1)[1])
  names = [f'{i}: {scenario.class_names[i]}' for i in seen]
  lines = [
    '---',
    'library_name: peft',
    '---',
    f'# {experiment.method.name} on {scenario.name}, after {tasks} of {len(scenario.tasks)} tasks',
    '',
    f'For {naming.model} with the weights of {backbone.name}',
    f'(sha256 {facts["backbone_sha256"]}).',
    f'Inputs of shape {list(backbone.inputs.shape)}: {facts["value_range"]}.',
    '',
  ]
  if head:
    lines += [
      f'The classifier `{naming.head}` has {len(scenario.class_order)} outputs and a bias: give '
      'the model one like that first. Classes learned so far, by output:',
      '',
      *(f'- {name}' for name in names),
    ]
  else:
    lines += ['The classifier of this method reads other features, and is not part of the adapter.']
  return '\n'.join(lines) + '\n'
