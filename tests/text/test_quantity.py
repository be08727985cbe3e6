"""Sizes and times, as people write them."""

import pytest

from pipeline.errors import UsageError
from pipeline.text.quantity import parse_duration, parse_size, readable_duration


@pytest.mark.parametrize(
    ("text", "size"),
    [("3G", 3 << 30), ("10k", 10240), ("7", 7), ("512M", 512 << 20), ("1K", 1024), ("2m", 2 << 20), ("1g", 1 << 30)],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["3T", "0", "0K", "-1", "+1", "3GiB", "3GB", "0x10", "", "G", " 3G", "3G ", "3G\n", "٣", "1.5G", "1_0", "9" * 5000],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert str(caught.value) == f"Bad size: {text}"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("0.5", 0.5), (" 1s ", 1)]
)
def test_a_time(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0.0m", "-1", "1 m", "1w", "10min", "1h30m", "inf", "nan", "1e3", "٣"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match=r"^Bad time: "):
        parse_duration(text)


def test_a_time_that_is_too_short() -> None:
    for text, least, hint in (("0.0m", 0.0, "more than 0"), ("0", 1.0, "at least 1"), ("0.9", 1.0, "at least 1")):
        with pytest.raises(UsageError, match=r"^Bad time: ") as caught:
            parse_duration(text, least)
        assert caught.value.hint == f"write {hint} seconds"
    assert parse_duration("1s", 1.0) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (12.4, "12 s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m"), (90000, "25h00m")],
)
def test_for_people(seconds: float, text: str) -> None:
    assert readable_duration(seconds) == text
