"""lab/panels.py: what the figures of the lab draw, checked on numbers that are worked by hand."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lab import panels


@pytest.fixture
def ax():
    return Figure().subplots()


def test_lines_are_means_over_seeds_with_a_band_of_one_deviation(ax):
    panels.draw_seeds(ax, {"grpo": ([1, 2], [[0.1, 0.4], [0.3, 0.8]])})
    (line,), (band,) = ax.lines, ax.collections
    assert line.get_label() == "grpo" and line.get_xdata().tolist() == [1, 2]
    np.testing.assert_allclose(line.get_ydata(), [0.2, 0.6])
    ends = band.get_paths()[0].vertices
    for x, mean, deviation in ((1, 0.2, 0.02**0.5), (2, 0.6, 0.08**0.5)):  # squares 2 x .1 and 2 x .2, over 1
        y = ends[ends[:, 0] == x, 1]
        np.testing.assert_allclose((y.min(), y.max()), (mean - deviation, mean + deviation))


def test_if_each_seed_has_its_own_x_both_are_means_and_there_is_no_band(ax):
    panels.draw_seeds(ax, {"grpo": ([[0, 1], [2, 5]], [[0.1, 0.4], [0.3, 0.8]])})
    assert ax.lines[0].get_xdata().tolist() == [1, 3] and not ax.collections


def test_a_single_seed_has_a_band_of_no_width(ax):
    panels.draw_seeds(ax, {"grpo": ([1, 2], [[0.1, 0.4]])})
    assert set(ax.collections[0].get_paths()[0].vertices[:, 1]) == {0.1, 0.4}


def test_powers_of_two_are_evenly_spaced_and_the_longest_line_names_the_ticks(ax):
    panels.draw_powers(ax, {"a": ([1, 2], [[0.1, 0.2]]), "b": ([1, 2, 8], [[0.1, 0.2, 0.3]])})
    assert ax.get_xticks().tolist() == [0, 1, 3]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "8"]


def test_bars_are_means_over_seeds_with_a_dot_for_each_and_one_entry_per_label_in_the_legend(ax):
    panels.draw_groups(ax, {"right": {"a": [0.1, 0.3], "b": [0.5]}, "wrong": {"b": [0.7]}})
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.2, 0.5, 0.7])
    assert ax.get_legend_handles_labels()[1] == ["a", "b"]
    dots = [list(line.get_ydata()) for line in ax.lines if line.get_marker() == "o"]
    assert dots == [[0.1, 0.3], [0.5], [0.7]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["right", "wrong"]


def test_the_same_data_give_the_same_bytes(tmp_path):
    drawn = [(panels.draw_seeds, {"a": ([1, 2], [[0.1, 0.2]])}, "title", "x", "y")] * 2
    for name in ("one.png", "two.png"):
        panels.draw_panels(drawn, tmp_path / name)
    picture = (tmp_path / "one.png").read_bytes()
    assert picture == (tmp_path / "two.png").read_bytes() and b"Matplotlib" not in picture
