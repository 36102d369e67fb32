"""Writes the tables of methods and transforms anew, from what the library has.

python experiments/tables.py
"""

import pathlib

from pecft_jax.listing import with_tables

ROOT = pathlib.Path(__file__).parents[1]
GUIDES = ROOT / 'experiments' / 'guides'
PAGES = (ROOT / 'README.md', GUIDES / 'choosing.md', GUIDES / 'sources.md')


def main() -> None:
  """Changes nothing but what stands between the comments that mark a table."""
  for page in PAGES:
    page.write_text(with_tables(page.read_text(encoding='utf-8')), encoding='utf-8')


if __name__ == '__main__':
  main()
