"""Verdicts on means over seeds, by Student's t."""

import functools
import math

import numpy as np
from mpmath import betainc  # sympy's arithmetic, which is installed with it


def t_tail(t: float, df: int) -> float:
    """P(|T| > t) of Student's t distribution with df degrees of freedom, t >= 0."""
    return float(betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True))


@functools.cache
def t_quantile(tail: float, df: int) -> float:
    """The t >= 0 with P(|T| > t) = tail, for Student's t with df degrees of freedom. By bisection."""
    low, high = 0.0, 1.0
    while t_tail(high, df) > tail:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, df) > tail else (low, middle)
    return high


def verdict(values, low=-math.inf, high=math.inf) -> dict:
    """values [S], one per seed -> whether their true mean is in low..high, where a claim says it is.

    low..high is (0, inf) for a positive difference, and (-margin, margin) for equivalence. The result:
    interval    the 95 % interval of the mean, by Student's t over seeds
    verdict     `holds` if the interval is inside low..high, `fails` if it is outside, else `undecided`. If the true
                mean is on the border, each verdict is wrong in at most 2.5 % of the cases. (For equivalence these are
                two one-sided tests.)
    p           two-sided, against a true mean on the nearest border
    detectable  how far inside the border a mean has to be, so that this many seeds show it in 80 % of the cases
    One value alone is always `undecided`."""
    values = np.asarray(values, dtype=float)
    seeds, mean = len(values), float(values.mean())
    if seeds < 2:
        return dict(mean=mean, interval=None, n=seeds, p=1.0, verdict="undecided", detectable=math.inf)
    error, df = float(values.std(ddof=1)) / math.sqrt(seeds), seeds - 1
    distance = min(abs(mean - low), abs(mean - high))
    p = t_tail(distance / error, df) if error else float(distance == 0)
    decided = "holds" if low < mean < high else "fails"
    reach = t_quantile(0.05, df) * error
    return dict(mean=mean, interval=[mean - reach, mean + reach], n=seeds, p=p,
                verdict=decided if p < 0.05 else "undecided", detectable=reach + t_quantile(0.4, df) * error)
