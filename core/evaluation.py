"""Evaluations: their statistics, the files in which responses are saved, and what a number depends on."""

import math
from collections import Counter
from importlib import metadata

import numpy as np
import torch

from core.data import read_rows
from core.processes import world
from core.sampler import TorchSampler
from core.verify import gold_answer


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
    """Unbiased pass@k of each problem, counts of right samples [P] among n -> [P, n], column k - 1 for k = 1..n:
    1 - C(n - c, k) / C(n, k) as a running product (arXiv 2107.03374, eq. 1; 2504.13837, section 2)."""
    wrong, drawn = n - np.asarray(right)[:, None], np.arange(n)
    return 1 - np.cumprod(np.maximum(wrong - drawn, 0) / (n - drawn), axis=1)


def maj_at_k(right: int, wrong: list[int], n: int, ks: list[int]) -> list[float]:
    """Chance that a majority vote of k of a problem's n samples, drawn without replacement, is right; exact, n <= 1000.
    right: samples with the right answer; wrong: votes for each wrong answer; the others have no answer and abstain.
    A tie of t answers counts 1/t if the right one is among them; a vote without ballots is wrong."""
    choose = lambda of, k: float(math.comb(of, k))
    room, total = max(ks) + 1, np.zeros(max(ks) + 1)
    for top in range(1, min(right, max(ks)) + 1):  # ballots of the right answer: it wins if no other has more
        rivals = [votes for votes in wrong if votes >= top]
        ways = np.zeros((room // top + 1, room))  # [rivals that tie, samples]: subsets of that size
        ways[0] = [choose(n - right - sum(rivals), k) for k in range(room)]  # of answers that cannot come up to top
        for votes in rivals:
            old, ways = ways, np.zeros_like(ways)
            for k in range(top):
                ways[:, k:] += choose(votes, k) * old[:, : room - k]
            ways[1:, top:] += choose(votes, top) * old[:-1, : room - top]
        total[top:] += choose(right, top) * (ways / np.arange(1, len(ways) + 1)[:, None]).sum(0)[: room - top]
    return [total[k] / choose(n, k) for k in ks]


def permutation_p(difference, draws=10_000, seed=0) -> float:
    """Two-sided p-value for paired differences [P] of mean 0: how often random signs, or those observed, which are
    added to the draws, give a mean at least as far from 0 (Fisher's randomisation test)."""
    d, rng = np.asarray(difference, dtype=float), np.random.default_rng(seed)
    sums = np.concatenate([rng.choice([-1.0, 1.0], (1000, len(d))) @ d for _ in range(0, draws, 1000)])
    return (1 + int((abs(sums) >= abs(d.sum()) - 1e-9).sum())) / (1 + len(sums))


def holm(ps) -> list[float]:
    """p-values [m] adjusted so that the chance of any false discovery among the m is bounded (Holm 1979)."""
    steps = np.maximum.accumulate(np.sort(ps) * np.arange(len(ps), 0, -1))
    return np.minimum(1, steps)[np.argsort(np.argsort(ps))].tolist()


def spread(right) -> tuple[float, float]:
    """Standard deviation (Bessel) over seeds of the accuracy, and what sampling alone would make it, right [P, S, n]:
    sqrt(mean of p (1 - p) / (n P)), each p (1 - p) estimated without bias. NaN where undefined."""
    problems, seeds, n = right.shape
    within = right.reshape(problems, -1).var(1, ddof=1).mean() if seeds * n > 1 else math.nan
    return float(right.mean((0, 2)).std(ddof=1)) if seeds > 1 else math.nan, math.sqrt(within / (n * problems))


def crossing(a, b) -> int | None:
    """The smallest k at which the other one of two pass@k curves [n], column k - 1, is ahead than at the start."""
    sign = np.sign(np.round(np.subtract(b, a), 12))
    behind = sign * sign[np.argmax(sign != 0)] < 0
    return int(behind.argmax()) + 1 if behind.any() else None


def solvable(a, b) -> dict[str, list[int]]:
    """Which problems have a right sample, by counts [P] of A and B (arXiv 2504.13837, section 3)."""
    a, b = np.asarray(a) > 0, np.asarray(b) > 0
    sets = dict(both=a & b, only_a=a & ~b, only_b=~a & b, none=~a & ~b)
    return {name: np.flatnonzero(inside).tolist() for name, inside in sets.items()}


def transitions(python_a, right_a, python_b, right_b) -> dict[str, dict]:
    """Strategies before (A) and after (B), python or words (arXiv 2506.10947, section 4): size, accuracy before and
    after, and contribution to the gain of the four cells, from [P, N] each. Every sample of A is paired with every one
    of B, which for N = 1 is the paper's table. Sizes sum to 1, and so do contributions; NaN where undefined."""
    gain, cells = float(right_b.mean() - right_a.mean()) or math.nan, {}
    pairs = lambda x, y: float((x.mean(1) * y.mean(1)).mean())  # share of all pairs in which x and y hold
    for before, was in (("python", python_a), ("words", 1 - python_a)):
        for after, now in (("python", python_b), ("words", 1 - python_b)):
            size, right_was, right_now = pairs(was, now), pairs(was * right_a, now), pairs(was, now * right_b)
            accuracies = dict(before=right_was / (size or math.nan), after=right_now / (size or math.nan))
            cells[f"{before} to {after}"] = dict(size=size, **accuracies, contribution=(right_now - right_was) / gain)
    return cells


# ------------------------------------------------------------------------------------------------ files
def read_responses(file) -> dict[str, np.ndarray]:
    """Columns [P, N] of a .jsonl file of saved responses: rows as Rollouts.rows() makes them, or such as have problem,
    answer, response or a list of responses and, if they are graded, correct or peer_score; None for what is missing.
    `source` is the row as it was read. The samples of a problem stand seed by seed. Raises OSError or ValueError, which
    say what is wrong where."""
    problems, place = {}, 0
    try:
        for place, source in read_rows(str(file)):  # noqa: B007
            texts = source["responses"] if "responses" in source else [source["response"]]
            grades = source.get("peer_score", [source.get("correct")] * len(texts))
            row = dict(seed=0, after="", extracted=None, tokens=None, finish=None) | source
            row |= dict(gold=gold_answer(row["gold"] if "gold" in row else row["answer"]), source=source)
            own = problems.setdefault(row.get("problem_id", row["problem"]), [])
            own += [dict(sample=i) | row | dict(response=str(x), correct=grades[i]) for i, x in enumerate(texts)]
    except (KeyError, TypeError, AttributeError, IndexError):
        need = "problem, gold or answer, and response or a list of responses"
        raise ValueError(f"{file}: row {place} needs {need}") from None
    sizes = {name: len(rows) for name, rows in problems.items()}
    if not sizes:
        raise ValueError(f"{file}: no saved response in it")
    usual = Counter(sizes.values()).most_common(1)[0][0]
    if odd := next((f"{name!r} has {size}" for name, size in sizes.items() if size != usual), None):
        raise ValueError(f"{file}: all problems need the same number of responses, but {odd}, others {usual}")
    for i, rows in enumerate(problems.values()):
        rows.sort(key=lambda row: (row["seed"], row["sample"]))
        rows[:] = [row | dict(problem_id=i) for row in rows]
    names = "problem_id problem gold after response extracted correct tokens finish seed sample source".split()
    return {name: np.array([[row[name] for row in rows] for rows in problems.values()], dtype=object) for name in names}


def describe(policy, sampler) -> dict:
    """What tells these weights, this engine and this machine from others; all ranks together."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "math-verify")}
    versions |= {} if isinstance(sampler, TorchSampler) else dict(vllm=sampler.version)
    return dict(weights=sum(x.abs().sum(dtype=torch.float64).item() for _, x in policy.weights()), versions=versions,
                dtype=str(policy.dtype), engine=type(sampler).__name__, processes=world(),
                hardware=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")  # fmt: skip
