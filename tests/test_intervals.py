"""The 95 % intervals of evaluations: how often they cover the truth, how wide they are, what must not change them."""

import math

import numpy as np
import pytest

from core.stats import with_interval


def some(share):
    """Problems of which a share is solved with a chance uniform in 0..1, the others never."""
    return lambda rng, shape: rng.random(shape) * (rng.random(shape) < share)


CELLS = {  # each problem's chance of a right sample, and the mean of the chances, which is the truth to be covered
    "Beta(.3, .3)": (lambda rng, shape: rng.beta(0.3, 0.3, shape), 0.5),
    "Beta(.1, .9)": (lambda rng, shape: rng.beta(0.1, 0.9, shape), 0.1),
    "Beta(.9, .1)": (lambda rng, shape: rng.beta(0.9, 0.1, shape), 0.9),
    "Beta(.4, .6)": (lambda rng, shape: rng.beta(0.4, 0.6, shape), 0.4),
    "85 % unsolved": (some(0.15), 0.075),
    "95 % unsolved": (some(0.05), 0.025),
    "85 % solved": (lambda rng, shape: 1 - some(0.15)(rng, shape), 0.925),
    "95 % solved": (lambda rng, shape: 1 - some(0.05)(rng, shape), 0.975),
}
PAIRS = {  # the chances under A and B, and the mean difference
    "no change": (lambda a, rng: a, 0),
    "each gains a fifth of what it lacks": (lambda a, rng: a + (1 - a) / 5, 0.12),
    "one in twenty becomes certain": (lambda a, rng: np.where(rng.random(a.shape) < 0.05, 1, a), 0.03),
    "one in twenty is lost": (lambda a, rng: np.where(rng.random(a.shape) < 0.05, 0, a), -0.02),
    "another model": (lambda a, rng: rng.beta(0.4, 0.6, a.shape), 0),
}


def intervals(values, **settings):
    """[mean, low, high] of each column, a part at a time for the memory's sake."""
    parts = np.array_split(values, max(1, values.shape[1] // 400), axis=1)
    return np.concatenate([with_interval(part, **settings) for part in parts]).T


def covered(cell, problems, samples, trials, draws):
    chances, truth = CELLS[cell]
    rng = np.random.default_rng(1)
    values = rng.binomial(samples, chances(rng, (problems, trials))) / samples
    _, low, high = intervals(values, draws=draws)
    return np.mean((low <= truth) & (truth <= high))


def old_interval(values, draws=10_000, seed=0):
    """The expanded percentile bootstrap (Hesterberg, arXiv 1411.5279), which was used before."""
    problems, rng = len(values), np.random.default_rng(seed)
    means = rng.multinomial(problems, np.full(problems, 1 / problems), draws) @ values / problems
    wider = math.sqrt(problems / (problems - 1)) * (1 + (1.96**2 + 1) / 4 / (problems - 1))
    tail = math.erfc(1.96 * wider / math.sqrt(2)) / 2
    return np.quantile(means, [tail, 1 - tail], axis=0)


# ------------------------------------------------------------------------------------------------ coverage and width
@pytest.mark.parametrize("problems", [30, 200])
@pytest.mark.parametrize("cell", CELLS)
def test_the_truth_is_covered(cell, problems):
    assert covered(cell, problems, samples=16, trials=500, draws=2000) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 64])
@pytest.mark.parametrize("problems", [30, 200])
@pytest.mark.parametrize("cell", CELLS)
def test_the_truth_is_covered_whatever_the_number_of_samples(cell, problems, samples):
    assert covered(cell, problems, samples, trials=4000, draws=10_000) >= 0.945


@pytest.mark.parametrize("problems, trials, draws", [
    (30, 500, 2000), (200, 500, 2000),
    pytest.param(30, 4000, 10_000, marks=pytest.mark.slow), pytest.param(200, 4000, 10_000, marks=pytest.mark.slow),
])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_true_difference_is_covered(pair, problems, trials, draws):
    change, truth = PAIRS[pair]
    rng = np.random.default_rng(2)
    before = rng.beta(0.4, 0.6, (problems, trials))
    values = (rng.binomial(16, change(before, rng)) - rng.binomial(16, before)) / 16
    _, low, high = intervals(values, draws=draws, least=-1)
    assert np.mean((low <= truth) & (truth <= high)) >= 0.93


@pytest.mark.parametrize("problems", [30, 200])
def test_the_interval_is_hardly_wider_than_the_bootstrap_where_that_is_right(problems):
    rng = np.random.default_rng(3)
    values = rng.binomial(16, rng.beta(0.4, 0.6, (problems, 200))) / 16
    _, low, high = intervals(values)
    old_low, old_high = old_interval(values)
    assert 1 <= np.mean(high - low) / np.mean(old_high - old_low) < 1.15


# ------------------------------------------------------------------------------------------------ by hand
def test_nothing_right_of_30_is_no_proof_of_0():
    # The weight of one more problem among 31 is Beta(1, 30): it exceeds x with chance (1 - x)^30 = 2.5 %.
    high = 1 - 0.025 ** (1 / 30)  # 0.116
    assert with_interval([0] * 30) == pytest.approx([0, 0, high], abs=0.004)
    assert with_interval([1] * 30) == pytest.approx([1, 1 - high, 1], abs=0.004)
    assert with_interval([1.0]) == pytest.approx([1, 0.025, 1], abs=0.004)


def test_right_or_wrong_answers_give_clopper_and_pearsons_interval():
    # 3 of 10: at 0.0667 three or more right have a chance of 2.5 %, at 0.6525 three or fewer.
    chance = lambda p, counts: sum(math.comb(10, k) * p**k * (1 - p) ** (10 - k) for k in counts)
    _, low, high = with_interval([1] * 3 + [0] * 7, draws=100_000)
    assert chance(low, range(3, 11)) == pytest.approx(0.025, abs=0.003)
    assert chance(high, range(4)) == pytest.approx(0.025, abs=0.003)


@pytest.mark.parametrize("problems", [1, 2, 30, 2000])
@pytest.mark.parametrize("value, least", [(0, 0), (1, 0), (0.25, 0), (0, -1), (1, -1), (-1, -1)])
def test_equal_values_are_no_reason_for_a_width_of_0(value, least, problems):
    mean, low, high = with_interval([value] * problems, least=least)
    assert least <= low <= mean == value <= high <= 1 and high - low > 0.5 / (problems + 4)


# ------------------------------------------------------------------------------------------------ what changes nothing
def test_the_order_of_the_problems_does_not_matter():
    rng = np.random.default_rng(4)
    values = rng.random(40)
    np.testing.assert_allclose(with_interval(rng.permutation(values)), with_interval(values), rtol=1e-12)


@pytest.mark.parametrize("least", [0, -1])
def test_wrong_answers_have_the_mirror_image_of_the_interval(least):
    values = np.random.default_rng(5).uniform(least, 1, 40)
    mean, low, high = with_interval(values, least=least)
    mirrored = with_interval(least + 1 - values, least=least)
    np.testing.assert_allclose(mirrored, np.subtract(least + 1, [mean, high, low]))


def test_a_difference_has_the_opposite_interval_if_the_models_are_swapped():
    values = np.random.default_rng(6).uniform(-0.3, 0.6, 40)
    mean, low, high = with_interval(values, least=-1)
    np.testing.assert_allclose(with_interval(-values, least=-1), [-mean, -high, -low])


@pytest.mark.parametrize("least", [0, -1])
def test_columns_have_the_intervals_of_separate_calls(least):
    values = np.random.default_rng(7).uniform(least, 1, (20, 3))
    together = with_interval(values, least=least)
    np.testing.assert_allclose(together, [with_interval(values[:, k], least=least) for k in range(3)])


def test_the_same_values_always_give_the_same_interval():
    values = np.random.default_rng(8).random((30, 4))
    assert with_interval(values) == with_interval(values) and with_interval(values) != with_interval(values, seed=1)
