"""What runs with paired seeds say: the difference, how sure it is, and what the design could have found.

Two things make an accuracy uncertain.  Another seed would have given another network: t_interval() of the differences
of pairs.  Other photographs would have been easier or harder: picture_interval(), by bootstrap over those of the test.
both_interval() has both.
"""
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

CONFIDENCE, POWER = 0.95, 0.8       # of every interval; with which a difference is called findable
DRAWS = 4000                        # of a bootstrap


class Interval(NamedTuple):
    """An estimate and its interval, in the unit of what was given."""
    mean: float
    low: float
    high: float


@lru_cache
def t_quantile(p: float, freedom: int) -> float:
    """Student's t at probability p, within 1e-5, for 1 or more degrees of freedom.

    With t = sqrt(freedom) * tan(angle) the density becomes cos(angle) ** (freedom - 1), which has no tails: its sum
    over a grid is inverted.
    """
    angle = np.linspace(-np.pi / 2, np.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(p, below / below[-1], angle)))


def t_interval(differences: Sequence[float]) -> Interval:
    """Mean of the differences of pairs, and Student's interval: for new seeds, on the same photographs."""
    d = np.asarray(differences, float)
    half = t_quantile((1 + CONFIDENCE) / 2, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
    return Interval(d.mean(), d.mean() - half, d.mean() + half)


def findable(differences: Sequence[float], pairs: int | None = None) -> float:
    """The true difference that so many pairs (None: as many as there are) would find 4 times in 5.

    "Find": the interval lies on one side of 0.  From the scatter of the differences, by the usual approximation to the
    noncentral t: its two quantiles are added up.
    """
    d, n = np.asarray(differences, float), pairs or len(differences)
    return float((t_quantile((1 + CONFIDENCE) / 2, n - 1) + t_quantile(POWER, n - 1)) * d.std(ddof=1) / n ** 0.5)


def picture_interval(right: np.ndarray, other: np.ndarray | None = None, seed: int = 0) -> Interval:
    """Accuracy of networks (seeds, N) bool, or its difference from the other's, for new photographs of the same kind:
    a bootstrap over the N, the same for all networks."""
    if other is not None and right.shape != other.shape:
        raise ValueError(f"Pairs need the same seeds and photographs: {right.shape} and {other.shape}.")
    per_picture = right.mean(0) - (0 if other is None else other.mean(0))
    rng, n = np.random.default_rng(seed), len(per_picture)
    drawn = np.concatenate([per_picture[rng.integers(n, size=(50, n))].mean(1) for _ in range(DRAWS // 50)])
    return Interval(per_picture.mean(), *np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))


def both_interval(right: np.ndarray, other: np.ndarray, pictures: Interval | None = None) -> Interval:
    """The difference of networks (seeds, N) and their partners, for new seeds and new photographs.

    The half widths of t_interval() and picture_interval() in quadrature.  How one network happens to answer one
    photograph is in both of them, so that part, which is left when seeds and photographs are taken out, is taken off
    once.  pictures: their picture_interval(), whose bootstrap is slow; None: it is computed.
    """
    d = right.astype(float) - other
    seeds, pictures = t_interval(d.mean(1)), pictures or picture_interval(right, other)
    rest = d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()
    twice = (rest ** 2).sum() / ((d.shape[0] - 1) * (d.shape[1] - 1)) / d.size       # a variance of the mean
    of_seeds, of_pictures = (((one.high - one.low) / 2) ** 2 for one in (seeds, pictures))
    normal = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    half = max(of_seeds, of_pictures, of_seeds + of_pictures - normal ** 2 * twice) ** 0.5
    return Interval(d.mean(), d.mean() - half, d.mean() + half)
