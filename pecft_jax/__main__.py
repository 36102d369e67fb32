"""`python -m pecft_jax` is the command `pecft`."""

import sys

from pecft_jax.cli import main

if __name__ == '__main__':
  sys.exit(main())
