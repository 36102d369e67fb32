"""Images of your own, one folder per class, in tasks.

    pecft run experiments/your_images.py --data-dir FOLDER --tasks 5

It is the benchmark `your_images` of the library, which `pecft run your_images` runs from anywhere.
"""

from pecft_jax.benchmarks.your_images import experiment

__all__ = ['experiment']
