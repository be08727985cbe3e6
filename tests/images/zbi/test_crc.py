import zlib

from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.zbi.crc import combined


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_two_parts_have_the_crc_of_the_whole(first: bytes, second: bytes) -> None:
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_a_large_second_part() -> None:
    first, second = b"header", bytes(range(256)) * 40_000
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)
