"""Small quantities keep their digits."""

import pytest

from vf.plan import units


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        (units.bytes_text, 3 * 2**29, "1.50 GiB"),
        (units.bytes_text, 12 * 2**20, "12.00 MiB"),
        (units.bytes_text, 2**30 - 1, "1.00 GiB"),
        (units.bytes_text, 5000 * 2**40, "5,000.00 TiB"),
        (units.count_text, 2_500, "2.50 k"),
        (units.count_text, 2_500_000_000, "2,500.00 M"),
        (units.flop_text, 2.5e8, "250.00 MFLOP"),
        (units.traffic_text, 2.5e9, "2.50 GB"),
        (units.seconds_text, 0.00025, "250.00 us"),
        (units.seconds_text, 0.0999, "99.90 ms"),
        (units.seconds_text, 5000.0, "5,000.00 s"),
        (units.seconds_text, 0.0, "0.00 us"),
    ],
)
def test_the_unit_leaves_one_to_three_digits(text, value, expected):
    assert text(value) == expected
