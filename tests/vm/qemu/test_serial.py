import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.vm.qemu.serial import MARKER, Console, Scanner

_PIECES = st.sampled_from([MARKER, b"{", b"{{{", b"}}}", b"reset", b"{{{rese", b"t}}}", b"\n"])
_STREAMS = st.lists(_PIECES | st.binary(max_size=3), max_size=12).map(b"".join)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


@settings(deadline=None)
@given(_STREAMS, st.lists(st.integers(0, 200), max_size=30))
def test_the_marker_is_found_exactly_if_it_is_there(stream: bytes, places: list[int]) -> None:
    scanner, seen = Scanner(), b""
    for chunk in cut(stream, places):
        scanner.feed(chunk)
        seen += chunk
        assert (scanner.found, scanner.count) == (MARKER in seen, seen.count(MARKER))


def test_the_marker_is_found_byte_by_byte() -> None:
    scanner = Scanner()
    for byte in b"{{{reset}}" + MARKER:
        assert not scanner.found
        scanner.feed(bytes([byte]))
    assert scanner.found


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as stream:
        stream.write(data)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "serial.log"
    path.touch()
    return path


def test_a_console_follows_its_log(log: Path) -> None:
    console = Console(log)
    console.update()
    assert (console.silent, console.markers, console.tail()) == (True, 0, "")
    append(log, b"one\ntwo\n{{{re")
    console.update()
    assert (console.silent, console.markers, console.tail()) == (False, 0, "one\ntwo\n{{{re")
    append(log, b"set}}}\nthree\n")
    console.update()
    assert (console.markers, console.tail(2)) == (1, "{{{reset}}}\nthree")
    console.update()
    assert console.tail(1) == "three"


def test_of_huge_output_the_end_is_kept(log: Path) -> None:
    console = Console(log)
    append(log, MARKER + b"\n" + b"x" * 99 + b"\n")
    append(log, b"".join(b"line %06d of the guest\n" % number for number in range(150_000)))
    console.update()
    assert console.markers == 1
    assert console.tail(2) == "line 149998 of the guest\nline 149999 of the guest"
    assert 60_000 < len(console.tail(10**6)) <= 65536


def test_the_tail_is_printable(log: Path) -> None:
    append(log, b"\x1b[31mred\x1b[0m\x07\r\n\xff\x9b2J\n")
    console = Console(log)
    console.update()
    assert console.tail() == "red\n\ufffd\ufffd2J"


def test_a_log_that_was_rotated_is_read_from_its_start(log: Path) -> None:
    console = Console(log)
    append(log, b"a long first part\n" + MARKER + b"\n")
    console.update()
    log.with_name("serial.log.1").write_bytes(log.read_bytes() + b"its rest" + MARKER + b"\n")
    log.write_bytes(b"second\n")
    console.update()
    assert (console.markers, console.tail(2)) == (2, "its rest{{{reset}}}\nsecond")
    log.with_name("serial.log.1").unlink()
    log.write_bytes(b"3\n")
    console.update()
    assert console.tail(1) == "3"


def test_news_are_what_came_since_and_a_little_before(log: Path) -> None:
    console = Console(log)
    assert console.news() == ""
    append(log, b"x" * 1000 + b"\nKernel pa")
    console.update()
    assert console.news().endswith("Kernel pa")
    assert console.news() == ""
    append(log, b"nic - not syncing")
    console.update()
    news = console.news()
    assert news.endswith("Kernel panic - not syncing")
    assert len(news) < 400
