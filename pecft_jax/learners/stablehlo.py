"""The predictions of a learner as a StableHLO program, which runs without this library.

The directory holds `predict.stablehlo` (a program of `jax.export`), `arrays.safetensors` (what it
reads besides the inputs) and `program.json` with the meaning of inputs and outputs.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.environment import environment, now
from pecft_jax.files import plain
from pecft_jax.learners.bundle import host_arrays, new_directory
from pecft_jax.learners.learner import Learner
from pecft_jax.paths import named_leaves
from pecft_jax.typing import Env

PROGRAM, ARRAYS, DESCRIPTION, README = (
  'predict.stablehlo', 'arrays.safetensors', 'program.json', 'README.md',
)  # fmt: skip
FORMAT, VERSION = 'pecft_jax program', 1
PLATFORMS = ('cpu', 'cuda', 'tpu')

_USE = """\
# {what}

    import jax
    from safetensors.flax import load_file

    program = jax.export.deserialize(open('predict.stablehlo', 'rb').read())
    answers = program.call(load_file('arrays.safetensors'), inputs)

`inputs`: {inputs}, any number B of them.
`answers`: float32 {outputs}; -inf for classes that were not learned.
`program.json` names the classes. Programs of `jax.export` are read by later versions of jax for six
months at least.
"""


def save_stablehlo(
  learner: Learner, directory: str | pathlib.Path, *, platforms: Sequence[str] = PLATFORMS
) -> None:
  """Writes `predict` of a learner as a program for any batch size.

  Only arrays that predictions read are written: no stored examples, unless the method predicts by
  them.

  Args:
    learner: of any method.
    directory: made if it does not exist; must be empty.
    platforms: of jax, that the program runs on.

  Raises:
    ValueError: if the directory is not empty, or the method predicts on a fixed batch size alone.

  >>> import jax
  >>> from pecft_jax import backbones, continual
  >>> from pecft_jax.learners import Learned, Learner
  >>> from pecft_jax.train.state import no_task
  >>> from pecft_jax.typing import Capacity
  >>> model = backbones.random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  >>> method = continual.simplecil(model.backbone, Capacity(tasks=2, classes=4))
  >>> params, memory = method.init(jax.random.key(0), model.params)
  >>> state = Learned(params, memory, no_task(method.capacity), jax.numpy.zeros((), 'int32'))
  >>> learner = Learner(
  ...   model=model, method=method, state=state, class_names=tuple('abcd'), tasks=0
  ... )
  >>> save_stablehlo(learner, 'program')
  >>> sorted(path.name for path in pathlib.Path('program').iterdir())
  ['README.md', 'arrays.safetensors', 'predict.stablehlo', 'program.json']
  """
  from safetensors.numpy import save

  tree = {'frozen': learner.model.params, 'state': learner.state}
  names, treedef = [name for name, _ in named_leaves(tree)], jax.tree.structure(tree)
  arrays, method = host_arrays(tree), learner.method

  def predict(leaves: Sequence[Any], x: Any) -> Any:
    whole = jax.tree.unflatten(treedef, leaves)
    state = whole['state']
    env = Env(whole['frozen'], state.task, state.step - state.task.start)
    return method.predict(state.params, state.memory, env, x).astype(jnp.float32)

  spec = method.inputs
  shape = lambda name: jax.ShapeDtypeStruct(arrays[name].shape, arrays[name].dtype)
  # What is read depends neither on the batch size nor on the platform, and is found for fixed ones
  # alone: the CPU, for which no kernels are chosen that an export would refuse.
  two = jax.ShapeDtypeStruct((2, *spec.shape), spec.dtype)
  traced = jax.export.export(jax.jit(predict), platforms=['cpu'])
  read = traced([shape(name) for name in names], two).module_kept_var_idx
  kept = {names[i] for i in read if i < len(names)}

  def call(given: dict[str, Any], x: Any) -> Any:
    # What is not read is filled in by zeros, which tracing drops.
    leaves = [given[n] if n in kept else jnp.zeros(arrays[n].shape, arrays[n].dtype) for n in names]
    return predict(leaves, x)

  program = jax.export.export(jax.jit(call), platforms=list(platforms))
  x = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('B'), *spec.shape), spec.dtype)
  exported = program({name: shape(name) for name in sorted(kept)}, x)
  directory = new_directory(directory)
  (directory / PROGRAM).write_bytes(exported.serialize())
  (directory / ARRAYS).write_bytes(save({name: arrays[name] for name in sorted(kept)}))
  outputs = [str(size) for size in exported.out_avals[0].shape]
  what = f'{method.name} on {learner.model.backbone.name}, after {learner.tasks} tasks'
  description = {
    'format': FORMAT,
    'version': VERSION,
    'written': now(),
    'what': what,
    'inputs': {'shape': ['B', *spec.shape], 'dtype': str(spec.dtype), 'values': spec.what},
    'outputs': {'shape': outputs, 'dtype': 'float32'},
    'classes': list(learner.class_names),
    'learned': learner.seen.tolist(),
    'platforms': list(platforms),
    'environment': environment(),
  }
  text = json.dumps(plain(description), indent=1)
  (directory / DESCRIPTION).write_text(text + '\n', encoding='utf-8')
  inputs = f'{spec.what}, {spec.dtype} [B, {", ".join(map(str, spec.shape))}]'
  use = _USE.format(what=what, inputs=inputs, outputs=f'[{", ".join(outputs)}]')
  (directory / README).write_text(use, encoding='utf-8')
