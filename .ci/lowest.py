"""Prints the lowest versions that pyproject.toml allows, as constraints for pip."""

import pathlib
import re
import tomllib

project = tomllib.loads(pathlib.Path('pyproject.toml').read_text(encoding='utf-8'))['project']
for line in [*project['dependencies'], *project['optional-dependencies']['test']]:
  name, lowest = re.fullmatch(r'([\w.-]+)(?:\[.*\])?>=([\d.]+)', line).groups()
  print(f'{name}=={lowest}')
