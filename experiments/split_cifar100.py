"""CIFAR-100, class-incrementally, on a pre-trained vision transformer.

    pecft run experiments/split_cifar100.py --data-dir DIR --weights FILE --method ease

It is the benchmark `split_cifar100` of the library.
"""

from pecft_jax.benchmarks.split_cifar100 import experiment

__all__ = ['experiment']
