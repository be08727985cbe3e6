"""Outputs made to keep whoever reads them busy.

All are read in time that grows with their length: if it grew with its square, these tests would not end within hours.
"""

import re

import pytest

from pipeline.fuzz.crashes.report import LOOKED_AT, parse
from pipeline.fuzz.crashes.rules import Rule, decide, slug
from pipeline.fuzz.crashes.severity import severity

PIECES = (
    "A", " ", "\n", "<", "(", "#0 0x1 in ", "ERROR: ", "ERROR: AAAAAAAA", "Sanitizer ", "Sanitizer:", "Assertion ",
    "Assertion failed: ", "panic: x\n", "fatal error: x\n\n", "panicked at '", "Check failed: a (", ": runtime error",
    "<== a ", "[1.2][a]", "========= A-", "\n\ngoroutine 1 [", "Direct leak of \n", " vs. ", "# Fatal error in ",
    "terminate called after throwing an instance of 'a::", ": terminating due to uncaught exception of type a:",
    "a.c:1: Assertion ", "SUMMARY: UndefinedBehaviorSanitizer: aa ", " panicked at ':1:1:",
    "===BUG DETECTED: A", "(BuildId: ", "SUMMARY: ", "Test unit written to ", "\x1b[", "freed by thread \n",
    "\nDEDUP_TOKEN: ", "\nDEDUP_TOKEN: a--", "--", "operator--", " on address 0x1", " (pc 0x1",
)  # fmt: skip
LONG = (
    "<",
    "(",
    ")",
    ":1 <",
    "a ",
    "<a as ",
    "std::",
    " const::",
    "operator ",
    "operator<",
    ".llvm.1",
    " const",
    "::",
    "(b+0x1) [0x1]",
    "'lambda'",
)


@pytest.mark.parametrize("piece", PIECES)
def test_long_outputs(piece: str) -> None:
    filler = piece * (LOOKED_AT // len(piece))
    for output in (
        filler,
        f"ERROR: libFuzzer: deadly signal\n    #0 0x1 in {filler}",
        f"ERROR: libFuzzer: deadly signal\nDEDUP_TOKEN: {filler[:15000]}\nDEDUP_TOKEN: {filler}",
        f"{filler}\nERROR: libFuzzer: x",
    ):
        if found := parse(output.encode()):
            assert re.fullmatch("[a-z0-9_-]{1,80}", slug(found))
            assert len(decide(found, rule=Rule("dedup-token")).lines()) < 140
            assert len(severity(found).sentence) <= 400


@pytest.mark.slow
@pytest.mark.parametrize("piece", LONG)
def test_stacks_of_long_lines(piece: str) -> None:
    text = piece * (8000 // len(piece))
    for form in (
        "    #0 0x1 in {} a.c:1",
        "   #0    0x1 in <{}>+0x1 sp",
        "    #0 0x1 in {}(m+0x1)",
        "  #0 {}(m+0x1)",
        "\tx{}.go:1",
    ):
        found = parse(("ERROR: AddressSanitizer: stack-overflow on\n" + f"{form.format(text)}\n" * 120).encode())
        assert found is not None
        assert all(len(frame.function) <= 1000 for frame in found.frames)
        assert re.fullmatch("[a-z0-9_-]{1,80}", slug(found))
