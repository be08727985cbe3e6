"""Sizes, as people write them."""

import pytest

from pipeline.errors import UsageError
from pipeline.size import parse_size


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
