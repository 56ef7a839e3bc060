"""The panels of the lab's figures."""

import numpy as np
from matplotlib.figure import Figure

from plot import LOOKS


def draw_panels(panels, out):
    """Draw panels side by side into the file `out`. A panel is (function to draw it, data, title, xlabel, ylabel)."""
    figure = Figure(figsize=(5.2 * len(panels), 4.2), dpi=90, layout="constrained")
    for ax, (draw_one, data, title, xlabel, ylabel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        draw_one(ax, data)
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        ax.grid(alpha=0.25)
        ax.legend(fontsize=8)
    figure.savefig(out, metadata={"Software": None})  # no version in it: the same data are the same bytes


def draw_seeds(ax, lines):
    """Draw a line for the mean over seeds, and a band of one standard deviation: {label: (x [K], values [seeds, K])}.

    x may be [seeds, K] too. Then the line is the mean of both, and there is no band."""
    for (label, (x, values)), look in zip(lines.items(), LOOKS):
        x, values = np.array(x), np.array(values)
        mean, deviation = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0 * values[0]
        style = dict(markevery=max(1, len(mean) // 8), ms=5, lw=1.8, label=label)
        ax.plot(x if x.ndim == 1 else x.mean(0), mean, **style, **look)
        if x.ndim == 1:
            ax.fill_between(x, mean - deviation, mean + deviation, color=look["color"], alpha=0.15, lw=0)


def draw_powers(ax, lines):
    """draw_seeds() on a logarithmic axis, for x that are powers of two."""
    draw_seeds(ax, {label: (np.log2(x), values) for label, (x, values) in lines.items()})
    longest = max((x for x, _ in lines.values()), key=len)
    ax.set(xticks=np.log2(longest), xticklabels=longest)


def draw_groups(ax, groups):
    """Draw a bar for the mean over seeds, and a dot for each seed: {group: {label: values [seeds]}}."""
    labels = list(dict.fromkeys(label for bars in groups.values() for label in bars))
    width = 0.8 / len(labels)
    for i, (label, look) in enumerate(zip(labels, LOOKS)):
        for g, bars in enumerate(groups.values()):
            if label in bars:
                x, values = g + (i - (len(labels) - 1) / 2) * width, bars[label]
                first = not any(label in earlier for earlier in list(groups.values())[:g])
                ax.bar(x, np.mean(values), 0.9 * width, color=look["color"], alpha=0.7, label=label if first else None)
                ax.plot([x] * len(values), values, "o", color="black", ms=2.5)
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(range(len(groups)), list(groups))
