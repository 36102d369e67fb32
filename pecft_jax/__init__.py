"""Parameter-efficient continual fine-tuning in JAX.

`peft` transforms act on a frozen model, `continual` methods learn task after
task with them, `train` runs long sequences of tasks; see README.md.
"""

__version__ = '0.1.0'
