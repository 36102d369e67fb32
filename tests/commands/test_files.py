import pathlib

from pecft_jax.commands.files import default_workdir, load_experiment, parse_flags
from pecft_jax.commands.run import RunFlags

DIGITS = str(pathlib.Path(__file__).parents[2] / 'experiments' / 'split_digits.py')


def test_runs_with_other_flags_get_directories_of_their_own():
  function = load_experiment(DIGITS)
  values, _ = parse_flags(function, [], 'pecft', RunFlags)
  other, _ = parse_flags(function, ['--method', 'l2p', '--seed', '3'], 'pecft', RunFlags)
  assert str(default_workdir('split_digits', function, values)) == 'runs/split_digits'
  assert str(default_workdir('split_digits', function, other)).endswith('-method=l2p-seed=3')
