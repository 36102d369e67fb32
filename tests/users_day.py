"""A user's day with an installed `pecft`: learn a folder of images, and use what was learned.

    python tests/users_day.py FOLDER [PYTHON]

FOLDER is made, and left with all that the day produced. PYTHON has the library; by default the one
that runs this script, which itself needs numpy and Pillow alone. Exits with an error at the first
thing that is not as it should be.
"""

import csv
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image

CLASSES = ('cross', 'dots', 'frame', 'stripes')
TRAINED, NEW = 12, 5  # Images of each class.
_ALONE = """
import sys
sys.modules['pecft_jax'] = None  # Importing it fails.
import jax, json, numpy
from safetensors.flax import load_file
program = jax.export.deserialize(open('predict.stablehlo', 'rb').read())
answers = program.call(load_file('arrays.safetensors'), numpy.load('images.npy'))
classes = json.load(open('program.json'))['classes']
print(json.dumps([classes[i] for i in numpy.argmax(answers, -1)]))
"""


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
  """A noisy grey drawing of a class, 24 x 20 pixels, as a colour image."""
  rows, columns = np.mgrid[:20, :24]
  shapes = {
    'cross': (abs(rows - 10) < 2) | (abs(columns - 12) < 2),
    'dots': (rows % 6 < 2) & (columns % 6 < 2),
    'frame': (rows < 3) | (rows > 16) | (columns < 5) | (columns > 18),
    'stripes': rows % 6 < 3,
  }
  ink = 200.0 * np.roll(shapes[kind], rng.integers(-1, 2, 2), (0, 1)) + rng.normal(30, 15, (20, 24))
  return Image.fromarray(np.repeat(np.clip(ink, 0, 255).astype(np.uint8)[..., None], 3, -1))


def draw(folder: pathlib.Path, count: int, seed: int, *, flat: bool = False) -> dict[str, str]:
  """Writes images of each class; returns the class of each file by its path.

  Args:
    folder: with one folder per class, or with all images where `flat`.
    count: images of each class.
    seed: of the drawings.
    flat: whether names of files say nothing of their class.
  """
  rng, truth = np.random.default_rng(seed), {}
  for kind in CLASSES:
    for i in range(count):
      name = f'{len(truth):03d} image, no. {i}.png' if flat else f'{kind}/{i} [{kind}].png'
      path = folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      picture(kind, rng).save(path)
      truth[str(path)] = kind
  return truth


class Day:
  """Commands of the user, in a folder."""

  def __init__(self, folder: pathlib.Path, python: str):
    """The folder is made; it must not exist."""
    folder.mkdir(parents=True)
    self.folder, self._command = folder, [python, '-m', 'pecft_jax.cli']
    self._python = python

  def start(self, *arguments: str) -> subprocess.Popen:
    """A command under way."""
    return subprocess.Popen(
      [*self._command, *arguments],
      cwd=self.folder,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def do(self, *arguments: str) -> str:
    """The standard output of a command, which must end well."""
    print('$ pecft', *arguments, flush=True)
    process = self.start(*arguments)
    out, err = process.communicate()
    assert process.returncode == 0, f'{out}\n{err}'
    return out

  def alone(self, where: str) -> list[str]:
    """The answers of an exported program, in a process that cannot import the library."""
    run = subprocess.run(
      [self._python, '-c', _ALONE], cwd=self.folder / where, check=True, capture_output=True,
      text=True,
    )  # fmt: skip
    return json.loads(run.stdout.splitlines()[-1])


def kill_at(process: subprocess.Popen, path: pathlib.Path) -> None:
  """Kills a command as soon as a path is there."""
  until = time.monotonic() + 300
  while not path.exists() and process.poll() is None:
    assert time.monotonic() < until, f'{path} did not appear'
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()


def main(folder: pathlib.Path, python: str) -> None:
  """The day."""
  day = Day(folder, python)
  draw(folder / 'photos', TRAINED, seed=0)
  truth = draw(folder / 'new photos', NEW, seed=1, flat=True)
  draw(folder / 'labelled', NEW, seed=2)
  day.do('doctor')

  # Learning is killed, and goes on.
  learn = (
    'run', 'your_images', '--data-dir', 'photos', '--tasks', '2', '--epochs', '4', '--batch-size',
    '8', '--workdir', 'learned', '--keep-tasks', '--save-every', '0',
  )  # fmt: skip
  kill_at(day.start(*learn), folder / 'learned' / 'checkpoints')
  day.do(*learn)
  assert json.loads((folder / 'learned' / 'results.json').read_text())['status'] == 'done'

  # Labels of another folder.
  day.do('predict', 'learned', 'new photos', '--convert', '--out', 'labels.csv')
  rows = list(csv.DictReader((folder / 'labels.csv').open(newline='')))
  labels = {str(folder / row['input']): row['label'] for row in rows}
  assert labels.keys() == truth.keys(), rows[:2]
  right = np.mean([labels[path] == kind for path, kind in truth.items()])
  print(f'{right:.0%} of the new photos are labelled right')
  assert right >= 0.8
  printed = day.do('predict', 'learned', 'new photos', '--convert', '--format', 'jsonl')
  assert [json.loads(line)['label'] for line in printed.splitlines()] == [r['label'] for r in rows]
  first = day.do('predict', 'learned', 'new photos', '--convert', '--after-task', '1')
  assert {row['label'] for row in csv.DictReader(first.splitlines())} <= set(CLASSES[:2])

  # Another test set.
  found = json.loads(day.do('evaluate', 'learned', '--data', 'labelled', '--convert', '--json'))
  assert found['accuracy'] >= 0.8, found

  # Out, to another place, without the run.
  day.do('export', 'learned', 'bundle', '--format', 'bundle')
  day.do('export', 'learned', 'program', '--format', 'stablehlo')
  day.do('report', 'learned', '--out', 'page.html')
  elsewhere = folder / 'elsewhere'
  elsewhere.mkdir()
  shutil.move(folder / 'bundle', elsewhere / 'bundle')
  shutil.move(folder / 'learned', elsewhere / 'put away')
  again = day.do('predict', 'elsewhere/bundle', 'new photos', '--convert')
  assert list(csv.DictReader(again.splitlines())) == rows
  images = [
    np.asarray(Image.open(folder / row['input']).convert('L').resize((16, 16), box=(2, 0, 22, 20),
               resample=Image.Resampling.BILINEAR))
    for row in rows
  ]  # fmt: skip
  np.save(folder / 'program' / 'images.npy', np.stack(images)[..., None])
  assert day.alone('program') == [row['label'] for row in rows]
  print('a good day')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else sys.executable)
