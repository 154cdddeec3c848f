"""Finding equal rows of long arrays."""

import numpy as np


def names_and_indices(names: np.ndarray) -> tuple[list, np.ndarray]:
    """Split names (D,) into the different ones, ascending, and the index of each row, (D,).

    Rows of a video mostly follow each other: sorting only the first of each run is much faster.
    """
    begins_run = np.ones(len(names), dtype=bool)
    begins_run[1:] = names[1:] != names[:-1]
    unique, index = np.unique(names[begins_run], return_inverse=True)
    return unique.tolist(), index[np.cumsum(begins_run) - 1]


def first_of_each(keys: np.ndarray) -> np.ndarray:
    """Positions at which the distinct values of `keys` stand for the first time, by value."""
    return np.unique(keys, return_index=True)[1]


def groups_of_equal_rows(*columns: np.ndarray) -> np.ndarray:
    """Number rows (N,) in the order they first appear; rows that are equal in all columns have the same number."""
    order = np.lexsort(columns)
    begins = np.zeros(len(order), dtype=bool)
    for column in columns:
        begins[1:] |= column[order][1:] != column[order][:-1]
    sorted_group = np.cumsum(begins)
    group = np.empty(len(order), dtype=np.int64)
    group[order] = sorted_group
    by_place = np.argsort(first_of_each(group), kind="stable")
    place = np.empty(len(by_place), dtype=np.int64)
    place[by_place] = np.arange(len(by_place))
    return place[group]


def occurrences(groups: np.ndarray) -> np.ndarray:
    """Count, for each of N rows, how many rows of its group stand above it."""
    order = np.argsort(groups, kind="stable")
    _, start, count = np.unique(groups[order], return_index=True, return_counts=True)
    occurrence = np.empty(len(groups), dtype=np.int64)
    occurrence[order] = np.arange(len(groups)) - np.repeat(start, count)
    return occurrence
