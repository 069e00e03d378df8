"""What an ideal coder of zero order would need."""

import numpy as np

from codec.coding.range_coder import Ints


def line_entropy(table: Ints) -> float:
    """Empirical entropy in bits of int64 (lines, rows), each line by its own distribution.

    No side information is counted: a coder that must also describe the distributions
    cannot reach this number unless it knows more than they say.
    """
    ordered = np.sort(table[table.any(axis=1)], axis=1)
    first = np.ones(ordered.shape, bool)  # of each run of equal values
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counts = np.diff(np.append(np.flatnonzero(first), ordered.size))
    return float((counts * np.log2(table.shape[1] / counts)).sum())
