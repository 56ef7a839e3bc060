"""Statistics of evaluations. P problems, n samples (responses) of each, from S seeds."""

import math
import re
from collections import Counter

import numpy as np

from core.answers import normalise


def with_interval(values, draws=10_000, seed=0, least=0, most=1) -> list:
    """[mean, low, high] over problems of values [P] in least..most. For [P, K]: a list of K of these.

    It is the 95 % interval for the mean over all such problems. The high end is the 97.5 % quantile of the mean, under
    random weights of the P problems and of one more, whose value is `most`. For the low end its value is `least`. So
    the interval is never a point, even if all values are equal (Gaffke 2005; Learned-Miller and Thomas, arXiv
    1905.06208). For values 0 and 1 it is Clopper and Pearson's. For differences, least=-1, the added problem weighs
    1/4: most differences are small, and with full weight few problems would get an interval three times as wide."""
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
    """right [P], numbers of right samples c -> pass@k [P, n] for k = column + 1: the chance that one of k is right.

    Unbiased: 1 - C(n - c, k) / C(n, k), as a running product (arXiv 2107.03374, eq. 1; arXiv 2504.13837, section 2)."""
    wrong, drawn = n - np.asarray(right)[:, None], np.arange(n)
    return 1 - np.cumprod(np.maximum(wrong - drawn, 0) / (n - drawn), axis=1)


def maj_at_k(right: int, wrong: list[int], n: int, ks: list[int]) -> list[float]:
    """maj@k of one problem, for each k in ks: the chance that a majority vote of k of its n samples is right. The k are
    drawn without replacement. Exact, for n up to 1000.

    right: how many samples have the right answer. wrong: how many have each wrong answer. The others have no answer and
    abstain. A tie of t answers counts 1/t if the right one is among them. If all abstain, the vote is wrong."""
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


def majority(saved: dict[str, np.ndarray], right: np.ndarray, ks: list[int]) -> list[list[float]]:
    """maj@k of each problem, for k in ks, over its first 256 samples: counting more would take minutes."""
    ballots, curves = min(right.shape[1], 256), []
    for hits, answers in zip(right[:, :ballots], saved["extracted"]):
        wrong = Counter(normalise(answer) for answer, hit in zip(answers, hits) if answer and not hit)
        curves.append(maj_at_k(int(hits.sum()), list(wrong.values()), ballots, [k for k in ks if k <= ballots]))
    return curves


def permutation_p(difference, draws=10_000, seed=0) -> float:
    """Two-sided p-value of paired differences [P]; under the null hypothesis their mean is 0.

    It says how often random signs give a mean at least as far from 0 as the observed one (Fisher's randomisation test).
    The observed signs count as one more draw, so p is never 0."""
    difference, rng = np.asarray(difference, dtype=float), np.random.default_rng(seed)
    signs = (rng.choice([-1.0, 1.0], size=(1000, len(difference))) for _ in range(0, draws, 1000))
    sums = np.concatenate([some @ difference for some in signs])
    as_far = abs(sums) >= abs(difference.sum()) - 1e-9
    return (1 + int(as_far.sum())) / (1 + len(sums))


def holm(ps) -> list[float]:
    """p-values [m] -> p-values [m], adjusted for the number of tests (Holm 1979)."""
    adjusted = np.maximum.accumulate(np.sort(ps) * np.arange(len(ps), 0, -1))
    places = np.argsort(np.argsort(ps))  # of each p-value in the sorted order
    return np.minimum(1, adjusted)[places].tolist()


def spread(right) -> tuple[float, float]:
    """right [P, S, n] -> two standard deviations of a seed's accuracy. NaN where undefined.

    The first is observed over seeds (Bessel's). The second is what sampling alone would give: sqrt(mean over problems
    of p (1 - p) / (n P)), with an unbiased estimate of p (1 - p)."""
    problems, seeds, n = right.shape
    observed = float(right.mean((0, 2)).std(ddof=1)) if seeds > 1 else math.nan
    within = right.reshape(problems, -1).var(1, ddof=1).mean() if seeds * n > 1 else math.nan
    return observed, math.sqrt(within / (n * problems))


def crossing(a, b) -> int | None:
    """The first k at which two pass@k curves [n] have crossed: the curve that was behind is ahead. None if there is no
    such k."""
    ahead = np.sign(np.round(np.subtract(b, a), 12))  # 1: b, -1: a, 0: neither
    first = ahead[np.argmax(ahead != 0)]
    crossed = ahead * first < 0
    return int(crossed.argmax()) + 1 if crossed.any() else None


def count(pattern: str, texts) -> np.ndarray:
    """How often a pattern occurs in each of the texts [P, n], in upper or lower case."""
    return np.vectorize(lambda text: len(re.findall(pattern, text, re.IGNORECASE)), otypes=[float])(texts)


def mean_lengths(tokens, right, among) -> dict[str, float]:
    """Mean length in tokens of the right and of the wrong responses `among` these. All arguments: [P, n]."""
    lengths = {}
    for word, value in (("right", 1), ("wrong", 0)):
        chosen = (right == value) & among
        lengths[word] = float(tokens[chosen].mean()) if chosen.any() else math.nan
    return lengths


def solvable(a, b) -> dict[str, list[int]]:
    """Indices of the problems that both models solve, only A, only B, and none (arXiv 2504.13837, section 3).

    a, b [P]: how many samples of A and B are right. One is enough to solve the problem."""
    a, b = np.asarray(a) > 0, np.asarray(b) > 0
    sets = dict(both=a & b, only_a=a & ~b, only_b=~a & b, none=~a & ~b)
    return {name: np.flatnonzero(inside).tolist() for name, inside in sets.items()}


def transitions(python_a, right_a, python_b, right_b) -> dict[str, dict]:
    """How the strategy changed, python or words, from model A to model B (arXiv 2506.10947, section 4).

    python, right: [P, n] of 0 and 1; n may differ between A and B. Every sample of A is paired with every sample of B
    for the same problem. With n = 1 this is the paper's table. Each of the four cells, such as "python to words", has
    size, its share of the pairs; before and after, the accuracies of A and B in it; contribution, its share of the
    gain. Sizes sum to 1, and so do contributions. NaN where undefined."""
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
                contribution=(right_after - right_before) / gain)
    return cells
