"""Exercises of notebook 06: coarsening at orders 2 and 3, and how strongly groups interact."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise

LABELS = ((0, 1, 0, 2, 1), (2, 0, 1, 1, 0))


def labelled_hessian(seed: int) -> tuple[Tensor, Tensor]:
    """H-bar (5, 5) of a fine partition, and for each fine group the coarse one (5,), 0 to 2."""
    root = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root + root.T, torch.tensor(LABELS[seed % 2])


def coarse(H: Tensor, labels: Tensor) -> Tensor:
    """Sums over blocks."""
    M = members(labels)
    return M @ H @ M.T


def members(labels: Tensor) -> Tensor:
    """M (3, 5): a one where a fine group belongs to a coarse one."""
    return F.one_hot(labels).T.double()


def labelled_third(seed: int) -> tuple[Tensor, Tensor]:
    """All of D3 (5, 5, 5), symmetric, and the labels (5,)."""
    T = torch.randn(5, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    symmetric = torch.stack([T.permute(order) for order in orders]).sum(0)
    return symmetric, torch.tensor(LABELS[seed % 2])


def coarse_third(T: Tensor, labels: Tensor) -> Tensor:
    """The diagonal of the coarser D3 (3,)."""
    M = members(labels)
    return torch.einsum("rst,ar,as,at->a", T, M, M, M)


def curvatures(seed: int) -> tuple[Tensor]:
    """H-bar (4, 4), with a negative entry on the diagonal."""
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    H = root + root.T
    return (H + torch.tensor([4.0, -4.0, 9.0, 1.0]).double().diag(),)


def interactions(H: Tensor) -> Tensor:
    """H_st / sqrt |H_ss H_tt|."""
    root = H.diagonal().abs().sqrt()
    return H / root / root[:, None]


EXERCISES = (
    Exercise(
        "06.1",
        "Coarsen H-bar: from a fine partition to the one that the labels say.",
        labelled_hessian,
        coarse,
        {
            "means, not sums: u_A is the sum of its u_s": lambda H, labels: (
                coarse(H, labels) / (members(labels).sum(1) * members(labels).sum(1)[:, None])
            ),
            "only the diagonal of H-bar: the pairs (s, t) with s != t count too": (
                lambda H, labels: coarse(H - H.triu(1) - H.tril(-1), labels)
            ),
            "each pair once: (s, t) and (t, s) both count": lambda H, labels: coarse(H.triu(), labels),
            "rows only: the columns are merged too": lambda H, labels: members(labels) @ H @ torch.eye(5, 3).double(),
            "neighbours merged: the labels say which groups go together": lambda H, labels: coarse(
                H, labels.sort().values
            ),
        },
        (
            "u_A is the sum of its u_s. Multiply out D2L[u_A, u_B].",
            "A sum over a block of rows and columns. With a matrix M of zeros and ones it is two products.",
            "M = torch.nn.functional.one_hot(labels).T.double(); return M @ H @ M.T",
        ),
    ),
    Exercise(
        "06.2",
        "Coarsen the third order: its diagonal for the partition that the labels say.",
        labelled_third,
        coarse_third,
        {
            "the sum of the fine diagonal: D3[r, s, t] with different r, s, t in one group counts too": (
                lambda T, labels: members(labels) @ T.diagonal().diagonal()
            ),
            "one index in the group, two anywhere: all three must be in it": lambda T, labels: torch.einsum(
                "rst,ar->a", T, members(labels)
            ),
            "a sum of cube roots: D of a merged group is the cube root of the sum of all its entries, not of its D": (
                lambda T, labels: (members(labels) @ T.diagonal().diagonal().abs() ** (1 / 3)) ** 3
            ),
            "everything: each merged group has its own sum": lambda T, labels: T.sum().expand(3),
        },
        (
            "D3[u_A, u_A, u_A] with u_A a sum: three sums, one for each argument.",
            "Group A takes the cube of entries T[r, s, t] with r, s and t all in A.",
            'M = torch.nn.functional.one_hot(labels).T.double(); return torch.einsum("rst,ar,as,at->a", T, M, M, M)',
        ),
    ),
    Exercise(
        "06.3",
        "Scale H-bar so that every entry on its diagonal is 1 or -1.",
        curvatures,
        interactions,
        {
            "nan: a curvature may be negative, take its absolute value before the root": lambda H: (
                H / H.diagonal().sqrt() / H.diagonal().sqrt()[:, None]
            ),
            "no root: each of the two groups gives the root of its curvature": lambda H: (
                H / H.diagonal().abs() / H.diagonal().abs()[:, None]
            ),
            "rows only: that is not symmetric": lambda H: H / H.diagonal().abs()[:, None],
            "columns only: that is not symmetric": lambda H: H / H.diagonal().abs(),
            "by the largest entry: that does not take out the scale of each group": lambda H: H / H.abs().max(),
        },
        (
            "Like a correlation: an entry over the root of the two diagonal entries in its row and its column.",
            "root = H.diagonal().abs().sqrt(); then divide rows and columns by it.",
            "root = H.diagonal().abs().sqrt(); return H / root / root[:, None]",
        ),
    ),
)
