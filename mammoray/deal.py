"""The dealing rule: which patient goes to which part.

1. Classes are dealt one by one, and in a class the cells (site and machine), by name. In a cell the patients stand in
   the order that they are given in, which is that of a hash, and are cut into contiguous blocks, one a part.
2. How many a part gets is counted by turns: each patient is a turn, and a turn goes to the part furthest behind its
   share. The count goes on from cell to cell, so that no remainders add up, and begins elsewhere for each class.
3. Patients have different numbers of images. So the two parts furthest apart in images swap two patients of one class,
   those that bring them closest, again and again while that helps, at most ``SWAPS`` times the number of parts. First
   come swaps that keep the patients of every cell as near to its shares, then those that leave them less than two from
   them. Also a single patient may move, where that keeps the patients of the class as near to its shares.

Counts are integers throughout, so that the result is the same on every machine. :func:`bound` says how many others one
patient more can move.

Array names end in their dimensions: P patients, N patients of a class, L labels, K parts, C cells, A kinds of patient
(of the same cell and with the same images), M pairs of kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

SWAPS = 16
_KINDS = 256
_UNIT = 2**22


def deal(class_P: Ints, cell_P: Ints, images_PL: Ints, weights: Sequence[int]) -> Ints:
    """Part of each patient.

    Parameters
    ----------
    class_P, cell_P : (P,) int64
        Class (a column of ``images_PL``) and cell of each patient; their order is that of their names, and the order
        of the patients is that of the dealing.
    images_PL : (P, L) int64
        Images of each patient, by label.
    weights : sequence of int
        The parts' shares of the patients, in these proportions; they add up to at most 10,000.

    Returns
    -------
    (P,) int64
        From 0 to ``len(weights) - 1``.

    Examples
    --------
    >>> deal(np.zeros(6, int), np.zeros(6, int), np.array([[4], [4], [4], [4], [8], [8]]), (1, 1, 1))
    array([2, 0, 1, 1, 0, 2])
    """
    part_P = np.zeros(len(class_P), dtype=np.int64)
    labels = images_PL.shape[1]
    members = [np.flatnonzero(class_P == label) for label in range(labels)]
    for label, those in enumerate(members):
        part_P[those] = _blocks(cell_P[those], turns(weights, len(those), label * len(weights) // labels))
    weight_K = np.array(weights, dtype=np.int64)
    images_KL = np.zeros((len(weights), labels), dtype=np.int64)
    np.add.at(images_KL, part_P, images_PL)
    images_L = images_PL.sum(axis=0)
    over_KL = weight_K.sum() * images_KL - weight_K[:, None] * images_L
    # Squares of a label's shares are compared, as integers: with this unit their sums stay below 2**63.
    price_L = np.maximum(1, _UNIT // np.maximum(1, images_L)) ** 2
    for those in members:
        if len(those):
            part_P[those] = _refine(part_P[those], cell_P[those], images_PL[those], weight_K, over_KL, price_L)
    return part_P


def turns(weights: Sequence[int], count: int, first: int) -> Ints:
    """Whose turn it is, ``count`` times: the part furthest behind its share; on a tie the next one from ``first`` on.

    After any number of turns a part is less than one turn from its share, with equal weights or at most three parts.
    Every part has a turn where there are as many turns as parts.

    Examples
    --------
    >>> turns((1, 1, 1), 5, 1).tolist(), turns((7, 2, 1), 10, 0).tolist()
    ([1, 2, 0, 1, 2], [0, 0, 1, 0, 0, 2, 0, 0, 1, 0])
    """
    total, parts = sum(weights), range(len(weights))
    behind, unserved, sequence = [0] * len(weights), set(parts), []
    for turn in range(min(count, total)):  # After as many turns as the weights add up to, all begins again.
        behind = [b + w for b, w in zip(behind, weights, strict=True)]
        candidates = unserved if count - turn <= len(unserved) else parts
        part = max(candidates, key=lambda j: (behind[j], -((j - first) % len(weights))))
        behind[part] -= total
        unserved.discard(part)
        sequence.append(part)
    return np.resize(np.array(sequence, dtype=np.int64), count)


def bound(cells: int, parts: int, classes: int = 1) -> int:
    """How many others one patient more can move at most.

    A cell is a window of the sequence of turns. In the cell of the new patient the window has a turn more, in those
    after it the window moves on by a turn; either moves each of the ``parts - 1`` borders between blocks by at most
    one patient. The swaps move two patients each, and those of before and after may have nothing in common.

    Parameters
    ----------
    cells : int
        Cells in the new patient's class.
    parts : int
    classes : int
        Classes that have images of the new patient's labels: one, where every patient has one label.

    Examples
    --------
    >>> bound(cells=7, parts=5)
    348
    """
    return cells * (parts - 1) + classes * 2 * 2 * SWAPS * parts


def _blocks(cell_N: Ints, turns_N: Ints) -> Ints:
    """Part of each patient of a class: in each cell the turns, sorted, are blocks."""
    part_N = np.empty_like(turns_N)
    order = np.argsort(cell_N, kind="stable")
    part_N[order] = turns_N[np.lexsort((turns_N, cell_N[order]))]
    return part_N


@dataclass(frozen=True, slots=True)
class _Kinds:
    """The kinds of patient in a class; the last one, of no cell and without images, is nobody."""

    of_N: Ints
    cell_A: Ints
    a_M: Ints
    b_M: Ints
    change_ML: Ints
    """Images by which ``a`` is more than ``b``."""


def _kinds(cell_N: Ints, images_NL: Ints) -> _Kinds:
    table, first_A, of_N = np.unique(
        np.column_stack([cell_N, images_NL]), axis=0, return_index=True, return_inverse=True
    )
    cell_A = np.unique(table[:, 0], return_inverse=True)[1]
    images_AL = np.vstack([table[:, 1:], np.zeros_like(images_NL[:1])])
    # All pairs are gone through: 65,000 of them are quick. Of more kinds, every second or third takes part, and so on.
    some = np.append(np.sort(np.argsort(first_A)[:: -(-len(table) // _KINDS)]), len(table))
    a_MM, b_MM = np.meshgrid(some, some, indexing="ij")
    a_M, b_M = a_MM.ravel(), b_MM.ravel()
    return _Kinds(of_N.reshape(-1), np.append(cell_A, cell_A.max() + 1), a_M, b_M, images_AL[a_M] - images_AL[b_M])


def _refine(part_N: Ints, cell_N: Ints, images_NL: Ints, weight_K: Ints, over_KL: Ints, price_L: Ints) -> Ints:
    """Part of each patient of a class after the swaps; ``over_KL``, images above their share, follows in place."""
    part_N, kinds, swaps = part_N.copy(), _kinds(cell_N, images_NL), 0
    price_L = np.where(images_NL.any(axis=0), price_L, 0)  # Labels that this class cannot change must not decide.
    counts_AK = np.zeros((len(kinds.cell_A), len(weight_K)), dtype=np.int64)
    np.add.at(counts_AK, (kinds.of_N, part_N), 1)
    for slack in (0, 1):
        while swaps < SWAPS * len(weight_K):
            swap = _best_swap(counts_AK, kinds, weight_K, over_KL, price_L, slack)
            if swap is None:
                break
            i, j, m = swap
            goes, comes = (_first(kinds, a, part_N, part) for a, part in ((kinds.a_M[m], i), (kinds.b_M[m], j)))
            part_N[goes], part_N[comes] = j, i
            change_K = np.bincount((i, j), (-1, 1), len(weight_K)).astype(np.int64)
            counts_AK[kinds.a_M[m]] += change_K
            counts_AK[kinds.b_M[m]] -= change_K
            over_KL += weight_K.sum() * np.outer(change_K, kinds.change_ML[m])
            swaps += 1
    return part_N


def _first(kinds: _Kinds, kind: int, part_N: Ints, part: int) -> Ints:
    """The first patient of a kind in a part, as an array; an empty one for nobody."""
    return np.flatnonzero((kinds.of_N == kind) & (part_N == part))[:1]


def _best_swap(
    counts_AK: Ints, kinds: _Kinds, weight_K: Ints, over_KL: Ints, price_L: Ints, slack: int
) -> tuple[int, int, int] | None:
    """The best pair of kinds ``m`` to swap between the parts ``i, j`` furthest apart of those that a swap helps."""
    total = int(weight_K.sum())
    excess_CK = _excess(counts_AK, kinds, weight_K)
    gap_KKL = over_KL[:, None] - over_KL[None]
    # Parts less than an image apart cannot come closer.
    apart_KK = np.triu(((np.abs(gap_KKL) // total) ** 2 * price_L).sum(axis=2))
    order = np.argsort(-apart_KK, axis=None, kind="stable")
    for flat in order[: np.count_nonzero(apart_KK)].tolist():
        i, j = divmod(flat, len(weight_K))
        worse_M = ((total * kinds.change_ML - gap_KKL[i, j]) * kinds.change_ML) @ price_L
        allowed_M = _allowed(counts_AK, excess_CK, kinds, i, j, slack * total)
        best = int(np.argmin(np.where(allowed_M, worse_M, 0)))
        if allowed_M[best] and worse_M[best] < 0:
            return i, j, best
    return None


def _excess(counts_AK: Ints, kinds: _Kinds, weight_K: Ints) -> Ints:
    """Patients of each cell above each part's share, times the sum of the weights, (C, K); nobody is the last cell."""
    in_cell_CK = np.zeros((int(kinds.cell_A[-1]) + 1, len(weight_K)), dtype=np.int64)
    np.add.at(in_cell_CK, kinds.cell_A[:-1], counts_AK[:-1])
    in_cell_CK[-1] = -counts_AK[:-1].sum(axis=0)  # Nobody stands where a patient of the class is missing.
    return np.asarray(weight_K.sum() * in_cell_CK - weight_K * in_cell_CK.sum(axis=1, keepdims=True))


def _allowed(counts_AK: Ints, excess_CK: Ints, kinds: _Kinds, i: int, j: int, slack: int) -> npt.NDArray[np.bool_]:
    """Which pairs may be swapped: both are there, and no cell and no class gets further from its share than allowed."""
    slack_C = np.full(len(excess_CK), slack)
    slack_C[-1] = 0  # A class never gets any slack,
    in_class_K = counts_AK[:-1].sum(axis=0)
    gives_C = (excess_CK[:, i] > -slack_C) & (excess_CK[:, j] < slack_C)
    takes_C = (excess_CK[:, j] > -slack_C) & (excess_CK[:, i] < slack_C)
    gives_C[-1] &= in_class_K[j] > 1  # and the last patient of it in a part stays.
    takes_C[-1] &= in_class_K[i] > 1
    cell_a_M, cell_b_M = kinds.cell_A[kinds.a_M], kinds.cell_A[kinds.b_M]
    there_AK = counts_AK > 0
    there_AK[-1] = True
    there_M = there_AK[kinds.a_M, i] & there_AK[kinds.b_M, j]
    return np.asarray(there_M & ((cell_a_M == cell_b_M) | (gives_C[cell_a_M] & takes_C[cell_b_M])))
