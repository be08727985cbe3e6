import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from pipeline.fuzz.crashes import replay
from pipeline.fuzz.crashes.bundle import Bundle, DigestDifference

BUNDLE = Bundle("demo/f", "SEGV-f-0123456789ab", "default/1", {}, ("f",), {}, 1, (), {}, b"i")


@dataclass(frozen=True)
class Counted:
    """A verdict, as the tries have counted it."""

    outcome: str
    tries: int = 10
    same: int = 0
    none: int = 0
    others: Mapping[str, int] = field(default_factory=dict)
    trouble: str = ""
    timeout: int = 0
    lost: int = 0
    failed: int = 0


SAME = Counted("same bucket", same=3, none=6, others={"FPE-g-ba9876543210": 1})
OTHER = Counted("other bucket", others={"FPE-g-ba9876543210": 10})
NONE = Counted("none", none=10)
NOT_RUN = Counted("not run", tries=0, trouble="no such fuzzer\x1b[2J")


@pytest.mark.parametrize(
    ("verdict", "told", "code"),
    [
        (SAME, "same bucket", 0),
        (OTHER, "other bucket FPE-g-ba9876543210", 1),
        (NONE, "none", 1),
        (Counted("timeout"), "timeout", 30),
        (Counted("guest lost"), "guest lost", 30),
        (NOT_RUN, "not run: no such fuzzer", 30),
    ],
)
def test_outcomes(verdict: Counted, told: str, code: int) -> None:
    assert (replay.told(verdict), replay.exit_code(verdict)) == (told, code)


def test_lines_for_people() -> None:
    differences = [DigestDifference("images", "disk", "b3:2", "b3:4"), DigestDifference("qemu", "qemu", "b3:3", "")]
    assert replay.lines(BUNDLE, SAME, differences) == [
        "SEGV-f-0123456789ab of demo/f: same bucket",
        "  same bucket         3 of 10",
        "  FPE-g-ba9876543210  1 of 10",
        "  none                6 of 10",
        "these digests differ from those in the bundle:",
        "  of      name  then  here",
        "  images  disk  b3:2  b3:4",
        "  qemu    qemu  b3:3  none here",
    ]


def test_tries_that_say_nothing_are_told() -> None:
    some = Counted("same bucket", same=1, timeout=2, lost=3, failed=4, trouble="4 guests were lost\x07")
    assert replay.counted("demo/f", "SEGV-f", some) == [
        "SEGV-f of demo/f: same bucket",
        "  same bucket  1 of 10",
        "  timeout      2 of 10",
        "  guest lost   3 of 10",
        "  failed       4 of 10",
        "trouble: 4 guests were lost",
    ]


def test_lines_without_tries_and_without_differences() -> None:
    assert replay.lines(BUNDLE, NOT_RUN, []) == [
        "SEGV-f-0123456789ab of demo/f: not run: no such fuzzer",
        "it ran with what the bundle tells of",
    ]


def test_hostile_names_are_cleaned_for_people() -> None:
    hostile = replace(BUNDLE, bucket="\x1b[2Ja\nb", fuzzer="\x07f")
    found = replay.lines(
        hostile, replace(OTHER, others={"\x1b]0;x\x07": 1}), [DigestDifference("\x1bc", "\n", "", "\0")]
    )
    assert all(line.isprintable() for line in found)


def test_the_answer_for_machines() -> None:
    answer = replay.encode(BUNDLE, OTHER, [DigestDifference("qemu", "qemu", "b3:3", "")])
    assert json.loads(json.dumps(answer)) == {
        "schema": 1,
        "fuzzer": "demo/f",
        "bucket": "SEGV-f-0123456789ab",
        "outcome": "other bucket",
        "told": "other bucket FPE-g-ba9876543210",
        "tries": 10,
        "same": 0,
        "none": 0,
        "others": {"FPE-g-ba9876543210": 10},
        "timeout": 0,
        "lost": 0,
        "failed": 0,
        "trouble": None,
        "differences": [{"group": "qemu", "name": "qemu", "then": "b3:3", "now": None}],
    }
