"""Statistics of evaluations and experiments; the files in which responses are saved; a description of what was
evaluated and where.

P problems, n samples (responses) of each, from S seeds."""

import functools
import math
import re

import numpy as np
from mpmath import betainc  # sympy's arithmetic, which is installed with it


# ------------------------------------------------------------------------------------------------ statistics
def with_interval(values, draws=10_000, seed=0, least=0, most=1) -> list:
    """[mean, low, high] over problems of values [P] in least..most, or for [P, K] a list of K of them. The interval is
    the 95 % one for the mean over all such problems. Its high end is the 97.5 % quantile of the mean under random
    weights of the P problems and of one more, whose value is `most`; its low end likewise, with one of value `least`.
    So it is never a point, even if all values are equal (Gaffke 2005; Learned-Miller & Thomas, arXiv 1905.06208; for
    values 0 and 1 it is Clopper and Pearson's). For differences, least=-1, the added problem weighs 1/4: differences
    are mostly small, and at full weight it would make the interval of few problems up to three times as wide."""
    values, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    sides = np.stack([values, least + most - values], axis=-1)  # low is the mirror image of high
    sides = np.concatenate([np.sort(sides, axis=0), np.full_like(sides[:1], most)])  # sorted: in any order the same
    means = []
    for _ in range(0, draws, 1000):
        weights = rng.standard_exponential((1000, len(sides)))  # divided by their sum: Dirichlet(1, ..., 1)
        weights[:, -1] = rng.standard_gamma(1 / (most - least) ** 2, 1000)
        means.append(np.tensordot(weights / weights.sum(1, keepdims=True), sides, 1))
    mean, high = values.mean(0), np.quantile(np.concatenate(means), 0.975, axis=0)
    low, high = np.clip(least + most - high[..., 1], least, mean), np.clip(high[..., 0], mean, most)
    return np.stack([mean, low, high], axis=-1).tolist()


def pass_at_k(right, n: int):
    """pass@k of each problem: the chance that at least one of k of its n samples is right, estimated without bias.
    right [P]: how many samples are right -> [P, n], column k - 1 for k = 1..n. It is 1 - C(n - c, k) / C(n, k), here as
    a running product (arXiv 2107.03374, equation 1; arXiv 2504.13837, section 2)."""
    wrong, drawn = n - np.asarray(right)[:, None], np.arange(n)
    return 1 - np.cumprod(np.maximum(wrong - drawn, 0) / (n - drawn), axis=1)


def maj_at_k(right: int, wrong: list[int], n: int, ks: list[int]) -> list[float]:
    """maj@k of one problem: the chance that a majority vote of k of its n samples, drawn without replacement, is right;
    for each k in ks. Exact, for n up to 1000.

    right: how many samples have the right answer; wrong: how many have each wrong answer; the rest of the n have no
    answer and abstain. A tie of t answers counts 1/t if the right one is among them; a vote in which all abstain is
    wrong."""
    most = max(ks)
    room = most + 1  # subsets of 0..most samples
    total = np.zeros(room)  # total[k]: subsets of k samples that vote right, a tie of t counted 1/t

    def choose(samples, k):
        """Binomial coefficient, as a float."""
        return float(math.comb(samples, k))

    for top in range(1, min(right, most) + 1):  # the right answer gets `top` votes, and no other gets more
        rivals = [votes for votes in wrong if votes >= top]  # wrong answers that can reach `top` votes
        others = n - right - sum(rivals)  # samples that cannot: of other wrong answers, or without an answer
        ways = np.zeros((room // top + 1, room))  # ways[t, k]: subsets of k wrong samples in which t rivals tie
        ways[0] = [choose(others, k) for k in range(room)]
        for votes in rivals:  # extend the subsets by k samples of this rival: fewer than `top`, or a tie
            without, ways = ways, np.zeros_like(ways)
            for k in range(top):
                ways[:, k:] += choose(votes, k) * without[:, : room - k]
            ways[1:, top:] += choose(votes, top) * without[:-1, : room - top]
        shared = (ways / np.arange(1, len(ways) + 1)[:, None]).sum(0)
        total[top:] += choose(right, top) * shared[: room - top]
    return [total[k] / choose(n, k) for k in ks]


def permutation_p(difference, draws=10_000, seed=0) -> float:
    """Two-sided p-value of paired differences [P], whose mean is 0 under the null hypothesis: how often random signs
    give a mean at least as far from 0 as the observed one (Fisher's randomisation test). The observed signs count as
    one more draw, so that it is never 0."""
    difference, rng = np.asarray(difference, dtype=float), np.random.default_rng(seed)
    signs = (rng.choice([-1.0, 1.0], size=(1000, len(difference))) for _ in range(0, draws, 1000))
    sums = np.concatenate([some @ difference for some in signs])
    as_far = abs(sums) >= abs(difference.sum()) - 1e-9
    return (1 + int(as_far.sum())) / (1 + len(sums))


def holm(ps) -> list[float]:
    """p-values [m], adjusted so that the chance of any false discovery among the m tests is bounded (Holm 1979)."""
    adjusted = np.maximum.accumulate(np.sort(ps) * np.arange(len(ps), 0, -1))
    places = np.argsort(np.argsort(ps))  # of each p-value in the sorted order
    return np.minimum(1, adjusted)[places].tolist()


def t_tail(t: float, df: int) -> float:
    """P(|T| > t) of Student's t distribution with df degrees of freedom, t >= 0."""
    return float(betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True))


@functools.cache
def t_quantile(tail: float, df: int) -> float:
    """The t >= 0 with P(|T| > t) = tail, for Student's t with df degrees of freedom; by bisection."""
    low, high = 0.0, 1.0
    while t_tail(high, df) > tail:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, df) > tail else (low, middle)
    return high


def verdict(values, low=-math.inf, high=math.inf) -> dict:
    """Whether the mean of values [S], one per seed, lies in low..high, as a claim predicts: (0, inf) for a positive
    difference, (-margin, margin) for equivalence.

    interval: 95 %, by Student's t over seeds. `holds` if all of it lies inside, `fails` if all of it lies outside, else
    `undecided`; so either verdict is wrong with a chance of at most 2.5 % if the mean is on the border (for equivalence
    these are two one-sided tests). p: two-sided, against a mean on the nearest border. detectable: how far inside the
    border a mean has to be for these seeds to show it with a chance of 80 %. A single value decides nothing."""
    values = np.asarray(values, dtype=float)
    seeds, mean = len(values), float(values.mean())
    if seeds < 2:
        return dict(mean=mean, interval=None, n=seeds, p=1.0, verdict="undecided", detectable=math.inf)
    error, df = float(values.std(ddof=1)) / math.sqrt(seeds), seeds - 1
    distance = min(abs(mean - low), abs(mean - high))
    p = t_tail(distance / error, df) if error else float(distance == 0)
    decided = "holds" if low < mean < high else "fails"
    reach = t_quantile(0.05, df) * error
    return dict(mean=mean, interval=[mean - reach, mean + reach], n=seeds, p=p, verdict=decided if p < 0.05 else
                "undecided", detectable=reach + t_quantile(0.4, df) * error)  # fmt: skip


def spread(right) -> tuple[float, float]:
    """Two standard deviations of the accuracy of a seed, from right [P, S, n]: the observed one over seeds (Bessel),
    and the one that sampling alone would give, sqrt(mean over problems of p (1 - p) / (n P)), where each p (1 - p) is
    estimated without bias. NaN where undefined."""
    problems, seeds, n = right.shape
    observed = float(right.mean((0, 2)).std(ddof=1)) if seeds > 1 else math.nan
    within = right.reshape(problems, -1).var(1, ddof=1).mean() if seeds * n > 1 else math.nan
    return observed, math.sqrt(within / (n * problems))


def crossing(a, b) -> int | None:
    """The first k at which two pass@k curves [n], column k - 1, have crossed: where the curve that was behind at first
    is ahead. None if they do not cross."""
    ahead = np.sign(np.round(np.subtract(b, a), 12))  # 1: b, -1: a, 0: neither
    first = ahead[np.argmax(ahead != 0)]
    crossed = ahead * first < 0
    return int(crossed.argmax()) + 1 if crossed.any() else None


def count(pattern: str, texts) -> np.ndarray:
    """How often a pattern occurs in each of the texts [P, n], in upper or lower case."""
    return np.vectorize(lambda text: len(re.findall(pattern, text, re.IGNORECASE)), otypes=[float])(texts)


def mean_lengths(tokens, right, among) -> dict[str, float]:
    """Mean length in tokens of the right and of the wrong responses among these; all arguments [P, n]."""
    lengths = {}
    for word, value in (("right", 1), ("wrong", 0)):
        chosen = (right == value) & among
        lengths[word] = float(tokens[chosen].mean()) if chosen.any() else math.nan
    return lengths


def solvable(a, b) -> dict[str, list[int]]:
    """Indices of the problems that have a right sample under both models, only A, only B and none of them, from the
    numbers of right samples [P] (arXiv 2504.13837, section 3)."""
    a, b = np.asarray(a) > 0, np.asarray(b) > 0
    sets = dict(both=a & b, only_a=a & ~b, only_b=~a & b, none=~a & ~b)
    return {name: np.flatnonzero(inside).tolist() for name, inside in sets.items()}


def transitions(python_a, right_a, python_b, right_b) -> dict[str, dict]:
    """How the strategy changed, python or words, from model A to model B (arXiv 2506.10947, section 4). python and
    right: [P, n] of 0 and 1; n may differ between A and B.

    Every sample of A is paired with every sample of B for the same problem; with n = 1 this is the paper's table. For
    each of the four cells, such as "python to words": size, its share of the pairs; before and after, the accuracies
    of A and B in it; contribution, its share of the gain in accuracy. Sizes sum to 1, and so do contributions. NaN
    where undefined."""
    gain = float(right_b.mean() - right_a.mean()) or math.nan

    def share(holds_a, holds_b):
        """The share of pairs in which the one holds for A's sample and the other for B's."""
        return float((holds_a.mean(1) * holds_b.mean(1)).mean())

    cells = {}
    for before, in_a in (("python", python_a), ("words", 1 - python_a)):
        for after, in_b in (("python", python_b), ("words", 1 - python_b)):
            size = share(in_a, in_b)
            right_before, right_after = share(in_a * right_a, in_b), share(in_a, in_b * right_b)
            cells[f"{before} to {after}"] = dict(
                size=size, before=right_before / (size or math.nan), after=right_after / (size or math.nan),
                contribution=(right_after - right_before) / gain)  # fmt: skip
    return cells
