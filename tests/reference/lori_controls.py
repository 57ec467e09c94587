"""Control masks in NumPy: the largest of any scores, entry by entry."""

import numpy as np


def by_score(scores, density, group):
    """Keep the `max(1, int(density * N))` largest scores of the `N` in each group.

    `group(name, index)` names the group of one entry. Of equal scores the one that
    comes first, in the order of the matrices and then row by row, is kept.
    """
    members = {}
    for name, matrix in scores.items():
        for index in np.ndindex(np.shape(matrix)):
            members.setdefault(group(name, index), []).append((name, index))
    found = {name: np.zeros(np.shape(matrix), bool) for name, matrix in scores.items()}
    for entries in members.values():
        best = sorted(entries, key=lambda e: -float(scores[e[0]][e[1]]))  # stable
        for name, index in best[: max(1, int(density * len(entries)))]:
            found[name][index] = True
    return found


def counts(mask, group):
    """The number of ones in each group of entries."""
    found = {}
    for name, matrix in mask.items():
        for index in np.ndindex(np.shape(matrix)):
            own = group(name, index)
            found[own] = found.get(own, 0) + int(matrix[index])
    return found
