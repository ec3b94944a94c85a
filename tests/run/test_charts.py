"""Curves go through their points, on axes that can be read, whatever the points."""

import re

import numpy as np
import pytest

from vf.run.charts import Axis, chart, smooth


def polylines(svg: str) -> list[np.ndarray]:
    return [
        np.array([[float(x) for x in point.split(",")] for point in points.split()])
        for points in re.findall(r'points="([^"]*)"', svg)
    ]


@pytest.mark.parametrize(("ys", "scale"), [([5.0, 1.0, 3.0, -2.0], lambda y: y), ([1e3, 50.0, 7.0, 1.0], np.log)])
def test_the_curve_goes_through_the_points(ys, scale):
    xs = np.array([0.0, 10.0, 15.0, 40.0])
    svg = chart({"a": list(zip(xs, ys, strict=True))})
    (points,) = polylines(svg)
    across, up = (points - points[0]).T
    np.testing.assert_allclose(across / across[-1], xs / 40, atol=1e-3)
    values = scale(np.array(ys))
    np.testing.assert_allclose(up / up[-1], (values - values[0]) / (values[-1] - values[0]), atol=1e-3)
    assert across[-1] > 0
    assert up[-1] > 0  # The last value is the lowest, and pixels count downwards.
    assert ("log scale" in svg) == (scale is np.log)


def test_series_share_the_axes_and_gaps_are_counted():
    svg = chart({"low": [(0, 1.0), (1, 1.0)], "<high>": [(0, 3.0), (1, float("nan")), (2, 3.0)]})
    low, high = polylines(svg)
    assert (high[:, 1] < low[:, 1]).all()
    assert high[-1, 0] - high[0, 0] == pytest.approx(2 * (low[-1, 0] - low[0, 0]))
    assert "&lt;high&gt; <b>3</b>, 1 not finite" in svg


@pytest.mark.parametrize("points", [[], [(3, 2.0)], [(3, 2.0), (4, 2.0)], [(1, float("inf"))], [(0, 0.0)] * 50])
def test_a_chart_of_few_points_is_drawn(points):
    svg = chart({"a": points})
    assert "nan" not in svg
    assert svg.count("<circle") == (points == [(3, 2.0)])


def test_a_long_noisy_curve_is_smoothed_and_thinned():
    rng = np.random.default_rng(0)
    points = [(x, 2 - x / 5000 + float(rng.normal(0, 0.1))) for x in range(5000)]
    raw, mean = polylines(chart({"a": points}, width=400))
    assert 200 <= len(raw) <= 400
    assert np.abs(np.diff(mean[:, 1])).mean() < np.abs(np.diff(raw[:, 1])).mean() / 10
    # Centred: the running mean of a straight line is the line, but for its ends.
    line = [(x, 3.0 * x) for x in range(90)]
    np.testing.assert_allclose(smooth(line)[3:-3], line[3:-3])


def test_one_huge_loss_does_not_spoil_the_page():
    points = [(x, 1e30 if x == 50 else 1e-3) for x in range(100)]
    smoothed = np.array([y for _, y in smooth(points)])
    assert smoothed[-10:] == pytest.approx(1e-3)
    assert len(polylines(chart({"a": points}))) == 2


@pytest.mark.parametrize(
    ("xs", "ys"),
    [
        ((0, 2600), (0.02, 3.0)), ((1_000_000, 9_999_999), (1.0, 2.0)), ((199_980, 200_000), (1e-5, 1.00001e-5)),
        ((5, 6), (-0.001, 0.001)), ((30, 120), (0.99991, 0.99999)), ((1, 2), (1e-30, 1e30)),
        ((123_456_700, 123_456_800), (0.0, 1.0)), ((3, 3), (0.12345, 0.12345)),
        ((0, 123_456_789), (1e8, 3e8)), ((0, 1e12), (0.001, 1.0)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("width", [430, 1280])
def test_labels_do_not_collide_nor_leave_the_chart(xs, ys, width):
    """By an estimate of 7 by 12 for a character of the page's 12 pixels."""
    svg = chart({"a": list(zip(xs, ys, strict=True))}, width=width)
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">(.*?)</text>', svg)
    boxes = {}
    for x, y, anchor, text in texts:
        wide = 7 * len(text)
        left = float(x) - (wide if anchor == "end" else wide / 2)
        boxes[anchor, text] = (left, float(y) - 9, left + wide, float(y) + 3)
    assert len(boxes) == len(texts)  # labels of one axis differ
    assert sum(anchor == "end" for anchor, _ in boxes) >= 1
    assert sum(anchor == "middle" for anchor, _ in boxes) >= 2  # one of them says "step"
    for one, (left, top, right, bottom) in boxes.items():
        assert left >= 18  # beside the name of the axis, which is turned
        assert right <= width
        for other, box in boxes.items():
            assert one == other or right <= box[0] or box[2] <= left or bottom <= box[1] or box[3] <= top


@pytest.mark.parametrize(("low", "high", "log"), [(0, 4000, False), (-0.3, 0.7, False), (1e-4, 2, True), (3, 99, True)])
def test_ticks_are_few_and_within(low, high, log):
    ticks = Axis(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks)
    assert ticks == sorted(set(ticks))
