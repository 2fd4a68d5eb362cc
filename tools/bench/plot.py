"""Bars in SVG, drawn here: one kind of plot does not pay for a library of plots.

Each row has a bar for each system, its length the ratio to the first on a scale of
powers of two, so that half and twice are as far from the line at 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABEL, RIGHT, BAR, GAP, TOP, LEGEND = 980, 280, 60, 9, 12, 34, 18
LOW, HIGH = -3, 7
"""Powers of two at the ends of the scale; longer bars are cut, and their number tells."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a plot."""

    label: str
    ratios: Sequence[float | None]
    """For each system, to the first one; None: not measured."""


def _x(ratio: float) -> float:
    place = (min(HIGH, max(LOW, math.log2(ratio))) - LOW) / (HIGH - LOW)
    return LABEL + place * (WIDTH - LABEL - RIGHT)


def draw(title: str, systems: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Return an SVG with a group of bars for each row.

    Args:
        title: Stands above it.
        systems: Their names and colours, in the order of each row's ratios.
        rows: From top to bottom.
    """
    colours = list(systems.values())
    parts: list[str] = []
    y = TOP + LEGEND * (len(systems) + 1)
    first_y = y
    for row in rows:
        middle = y + BAR * len(systems) / 2 + 4
        parts.append(
            f'<text x="{LABEL - 8}" y="{middle:.0f}" text-anchor="end">{escape(row.label)}</text>'
        )
        for index, ratio in enumerate(row.ratios):
            if ratio is not None and ratio > 0:
                start, stop = sorted((_x(1), _x(ratio)))
                parts.append(
                    f'<rect x="{start:.1f}" y="{y + index * BAR}" width="{max(stop - start, 1):.1f}"'
                    f' height="{BAR - 1}" fill="{colours[index]}"/>'
                    f'<text x="{stop + 3:.1f}" y="{y + index * BAR + 8}" class="n">{ratio:.2f}</text>'
                )
        y += BAR * len(systems) + GAP
    scale = [
        f'<line x1="{_x(2.0**power):.1f}" y1="{first_y - 8}" x2="{_x(2.0**power):.1f}" y2="{y}"'
        f' stroke="{"#000" if power == 0 else "#ddd"}"/>'
        f'<text x="{_x(2.0**power):.1f}" y="{first_y - 10}" text-anchor="middle" class="n">{2.0**power:g}x</text>'
        for power in range(LOW, HIGH + 1)
    ]
    legend = [
        f'<rect x="{LABEL}" y="{TOP - 8 + index * LEGEND}" width="12" height="9"'
        f' fill="{colours[index]}"/>'
        f'<text x="{LABEL + 18}" y="{TOP + index * LEGEND}">{escape(name)}</text>'
        for index, name in enumerate(systems)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" width="{WIDTH}"'
        ' font-family="sans-serif" font-size="12">\n<style>.n{font-size:8px;fill:#444}</style>\n'
        f'<rect width="{WIDTH}" height="{y + 10}" fill="#fff"/>\n'
        f'<text x="8" y="18" font-size="14" font-weight="bold">{escape(title)}</text>\n'
        + "\n".join([*scale, *legend, *parts])
        + "\n</svg>\n"
    )
