"""Products of weights with trained orthogonal matrices."""
