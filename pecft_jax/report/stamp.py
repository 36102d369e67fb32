"""Whether a page that is there still shows what would be drawn again."""

import hashlib
from pathlib import Path

import pecft_jax

_FILES = ('results.json', 'config.json', 'metrics.jsonl')


def stamp_of(directory: Path) -> str:
  """A digest of all that the page of a work directory is made of, and of what makes it."""
  digest = hashlib.sha256(pecft_jax.__version__.encode())
  for source in sorted(Path(__file__).parent.glob('*.py')):
    digest.update(f'{source.name} {source.stat().st_mtime_ns}\n'.encode())
  for place in (directory, *sorted(directory.glob('references/*'))):
    for name in _FILES:
      path = place / name
      content = path.read_bytes() if path.is_file() else b''
      digest.update(f'{place.name}/{name} {len(content)}\n'.encode() + content)
  return f'made from {digest.hexdigest()}'


def is_current(page: Path, stamp: str) -> bool:
  """Whether a page has the stamp.

  Args:
    page: an HTML file, which need not exist.
    stamp: as `stamp_of` gives it.
  """
  return page.is_file() and stamp in page.read_text(encoding='utf-8', errors='replace')
