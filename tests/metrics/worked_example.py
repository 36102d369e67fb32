"""Three tasks by hand. Row = time, column = task; above the diagonal: zero-shot.

Task 2 gains from task 3, which separates the variants of forgetting.
"""

import numpy as np

MATRIX = np.array([[0.90, 0.10, 0.05], [0.80, 0.85, 0.15], [0.70, 0.90, 0.80]])
SEEN = np.where(np.tri(3, dtype=bool), MATRIX, np.nan)
SIZES = (100, 300, 600)
JOINT = (0.90, 0.88, 0.86)
SINGLE = (0.90, 0.88, 0.84)
START = (0.08, 0.06, 0.05)
