"""Handwritten digits, two classes at a time, on a backbone that saw only letters.

    pecft run experiments/split_digits.py
    pecft run experiments/split_digits.py --method l2p

Needs no download: scikit-learn brings the digits, the library the backbone (made by
pretrain_glyphs.py). It is the benchmark `split_digits` of the library, which `pecft run
split_digits` runs from anywhere.
"""

from pecft_jax.benchmarks.split_digits import experiment

__all__ = ['experiment']
