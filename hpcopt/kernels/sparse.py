"""Sparse payloads back into dense tensors."""

from numba import njit


@njit(nogil=True, cache=True)
def scatter(values, indices, weight, out):
    """``out[indices[j]] += weight * values[j]``; False (with out in part changed) if an index is past the end."""
    for j in range(indices.size):
        if indices[j] >= out.size:
            return False
        out[indices[j]] += weight * values[j]
    return True
