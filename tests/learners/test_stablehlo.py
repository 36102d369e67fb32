"""A program predicts as the learner does, at any batch size, and where this library is absent."""

import json
import subprocess
import sys

import jax
import numpy as np
from safetensors.numpy import load_file

from pecft_jax.learners import load_run, save_stablehlo


def test_stored_examples_stay_at_home(run_of, tmp_path):
  experiment, directory = run_of('derpp(finetune)')
  learner = load_run(directory, model=experiment.model)
  save_stablehlo(learner, tmp_path / 'a')
  assert any(leaf.dtype == np.uint8 for leaf in jax.tree.leaves(learner.state.memory))
  arrays = load_file(tmp_path / 'a' / 'arrays.safetensors')
  assert not [name for name, array in arrays.items() if array.dtype == np.uint8]


_ALONE = """
import sys
sys.modules['pecft_jax'] = None  # Importing it fails.
import jax, numpy
from safetensors.numpy import load_file
program = jax.export.deserialize(open('predict.stablehlo', 'rb').read())
images = numpy.load('images.npy')
numpy.save('answers.npy', program.call(load_file('arrays.safetensors'), images))
"""


def test_a_process_without_this_library_runs_it(run_of, tmp_path):
  experiment, directory = run_of('ranpac')
  learner = load_run(directory, model=experiment.model)
  save_stablehlo(learner, tmp_path / 'a')
  images = experiment.scenario.tasks[1].test.inputs
  np.save(tmp_path / 'a' / 'images.npy', images)
  subprocess.run([sys.executable, '-c', _ALONE], cwd=tmp_path / 'a', check=True)
  answers = np.load(tmp_path / 'a' / 'answers.npy')
  np.testing.assert_allclose(answers, learner.predict(images), rtol=1e-5, atol=1e-5)
  said = json.loads((tmp_path / 'a' / 'program.json').read_text())
  assert said['inputs'] == {'shape': ['B', 4, 4, 1], 'dtype': 'uint8', 'values': 'images'}
  assert said['outputs']['shape'] == ['B', '4']
  assert (said['classes'], said['learned']) == (['0', '1', '2', '3'], [True] * 4)
  assert 'jax.export.deserialize' in (tmp_path / 'a' / 'README.md').read_text()


def test_a_program_takes_any_number_of_examples(run_of, tmp_path):
  experiment, directory = run_of('ease')
  learner = load_run(directory, model=experiment.model)
  save_stablehlo(learner, tmp_path / 'program')
  program = jax.export.deserialize((tmp_path / 'program' / 'predict.stablehlo').read_bytes())
  arrays = load_file(tmp_path / 'program' / 'arrays.safetensors')
  images = experiment.scenario.tasks[0].test.inputs
  for size in (1, 4):
    expected = learner.predict(images[:size])
    np.testing.assert_allclose(program.call(arrays, images[:size]), expected, rtol=1e-5, atol=1e-5)
