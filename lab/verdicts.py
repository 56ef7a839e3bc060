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


def verdict(values, low=-math.inf, high=math.inf, matters=0.0) -> dict:
    """values [S], one per seed -> whether their true mean is in low..high, where a claim says it is.

    low..high is (0, inf) for a positive difference, and (-margin, margin) for equivalence. `matters` is the smallest
    difference that would be worth a claim. The result:
    interval  the 95 % interval of the mean, by Student's t over seeds
    spread    the standard deviation over seeds
    verdict   `holds` if the interval is inside low..high. `fails` if it is outside, or if all of it is less than
              `matters` inside: then there is no difference that matters. Else `undecided`. If the true mean is on such
              a border, each verdict is wrong in at most 2.5 % of the cases. (For equivalence these are two one-sided
              tests.)
    p         two-sided, against a true mean on the border that decides, or else on the nearest one
    One value alone is always `undecided`."""
    values = np.asarray(values, dtype=float)
    seeds, mean = len(values), float(values.mean())
    if seeds < 2:
        return dict(mean=mean, interval=None, n=seeds, p=1.0, verdict="undecided", spread=math.nan)
    spread, df = float(values.std(ddof=1)), seeds - 1
    error = spread / math.sqrt(seeds)

    def p_at(*borders):
        distance = min(abs(mean - border) for border in borders)
        return t_tail(distance / error, df) if error else float(distance == 0)

    decided, p = "holds" if low < mean < high else "fails", p_at(low, high)
    if p >= 0.05 and matters and not low + matters <= mean <= high - matters:
        decided, p = "fails", p_at(low + matters, high - matters)
    reach = t_quantile(0.05, df) * error
    return dict(mean=mean, interval=[mean - reach, mean + reach], n=seeds, p=p, spread=spread,
                verdict=decided if p < 0.05 else "undecided")


def seeds_for(spread: float, distance: float, sides: int, power=0.8, most=1000) -> int:
    """How many seeds decide with this power, if single seeds scatter by `spread` and the true mean is `distance` from
    the border. sides: 1, or 2 for equivalence, whose true mean is in the middle of two borders. At most `most`."""
    missed = 2 * (1 - power) / sides  # two-sided, as t_quantile() takes it
    enough = lambda n: (t_quantile(0.05, n - 1) + t_quantile(missed, n - 1)) * spread / math.sqrt(n) <= distance
    return next((n for n in range(2, most) if enough(n)), most)
