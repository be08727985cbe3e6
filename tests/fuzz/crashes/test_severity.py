"""How bad a crash can be: in words, by a stated rule."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fuzz.crashes.report import CrashReport, parse
from pipeline.fuzz.crashes.severity import EFFECTS, severity
from pipeline.fuzz.crashes.stack import Frame
from tests.fuzz.crashes.recorded import OUTPUTS, parsed, read


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "parser_fuzzer-copy_text",
            "corruption of memory: it writes 17 bytes outside a buffer of the heap (heap-buffer-overflow, WRITE 17)",
        ),
        (
            "parser_fuzzer-look_up_square",
            "disclosure of memory: it reads 4 bytes outside a buffer of global memory (global-buffer-overflow, READ 4)",
        ),
        (
            "maze_fuzzer-narrow_stairs",
            "corruption of memory: it writes 1 byte outside a buffer of the stack (stack-buffer-overflow, WRITE 1)",
        ),
        ("maze_fuzzer-trap_door", "availability only: it reads near null (SEGV, READ, address 0x000000000000)"),
        (
            "parser_fuzzer-set_name",
            "corruption of memory: it frees memory that is not there to be freed (double-free)",
        ),
        ("parser_fuzzer-nested_list", "availability only: it called itself too deeply (stack-overflow)"),
        ("maze_fuzzer-endless_corridor", "availability only: it took too long (timeout)"),
        ("maze_fuzzer-sealed_gate", "availability only: the target stopped itself (assertion failure)"),
        ("fuzz-oom", "availability only: it asked for too much memory (out-of-memory)"),
        ("lsan", "availability only: it does not free memory that it no longer uses (memory leak)"),
        ("crash_fuzzer-greet", "availability only: the target stopped itself (deadly signal, abort in its stack)"),
        ("cxx-lambda", "not known: the report does not tell enough (deadly signal)"),
        ("cxx-bad-cast", "corruption of memory: it takes something for another type (bad-cast)"),
    ],
)
def test_a_recorded_crash(name: str, sentence: str) -> None:
    assert severity(read(name)).sentence == sentence


def test_memory_that_was_freed() -> None:
    found = severity(read("maze_fuzzer-ghost_room"))
    assert found.effect == "disclosure of memory"
    assert found.reason == "it reads 1 byte in memory of the heap that is no longer its own"
    assert found.facts == ("heap-use-after-free", "READ 1")


@pytest.mark.parametrize(
    ("line", "access", "effect", "reason"),
    [
        # An address of its own, and where the program counter is
        ("SEGV on unknown address 0x41414141 (pc 0x41414141 bp 0x1", "", "control of execution", "it jumped to"),
        ("SEGV on unknown address 0x000000000000 (pc 0x0 bp 0x1", "", "availability only", "an address near null"),
        ("SEGV on unknown address 0x000000000fff (pc 0x7f00 bp", "WRITE", "availability only", "it writes near null"),
        ("SEGV on unknown address 0x000000001000 (pc 0x7f00 bp", "WRITE", "corruption of memory", "not near null"),
        ("SEGV on unknown address 0x000000001000 (pc 0x7f00 bp", "READ", "disclosure of memory", "not near null"),
        ("SEGV on unknown address 0x000000001000 (pc 0x7f00 bp", "", "corruption of memory", "it reads or writes"),
        ("SEGV on unknown address (pc 0x7f00 bp 0x1", "READ", "disclosure of memory", "an address that is not told"),
        ("SEGV on unknown address (pc 0x7f00 bp 0x1", "", "not known", "an access at an address that is not told"),
        ("stack-buffer-underflow on address 0x7f00 at pc 0x1 bp", "", "corruption of memory", "it reads or writes"),
        ("FPE on unknown address 0x4a00 (pc 0x4a00 bp 0x1", "", "availability only", "it divided"),
        ("stack-overflow on address 0x7f00 (pc 0x1 bp", "", "availability only", "too deeply"),
        ("attempting free on address which was not malloc()-ed: 0x1 in", "", "corruption of memory", "frees"),
        ("new-failure on something", "", "not known", "does not tell enough"),
    ],
)
def test_a_line(line: str, access: str, effect: str, reason: str) -> None:
    told = f"==1==The signal is caused by a {access} memory access.\n" * bool(access)
    found = severity(parsed(f"==1==ERROR: AddressSanitizer: {line} sp 0x2 T0)\n{told}    #0 0x1 in f\n"))
    assert found.effect == effect
    assert reason in found.reason


def test_an_address_that_the_processor_does_not_tell_is_not_null() -> None:
    """Before LLVM 13, AddressSanitizer wrote it as 0, and said so only in a hint."""
    text = (
        "==1==ERROR: AddressSanitizer: SEGV on unknown address 0x000000000000 (pc 0x7f00 bp 0x1 sp 0x2 T0)\n"
        "==1==The signal is caused by a WRITE memory access.\n{}    #0 0x1 in f\n"
    )
    hint = "==1==Hint: this fault was caused by a dereference of a high value address (see registers below).\n"
    assert severity(parsed(text.format(""))).effect == "availability only"
    found = parsed(text.format(hint))
    assert (found.address, found.pc) == ("", "0x7f00")
    assert severity(found).effect == "corruption of memory"


@pytest.mark.parametrize(
    ("line", "address", "pc"),
    [
        ("ERROR: AddressSanitizer: heap-use-after-free on address 0x60f0 at pc 0x7efd bp 0x1", "0x60f0", "0x7efd"),
        ("ERROR: AddressSanitizer: attempting double-free on 0x502000000050 in thread T0:", "0x502000000050", ""),
        ("ERROR: AddressSanitizer: attempting free on address which was not malloc()-ed: 0x5 in thread", "0x5", ""),
        ("Scudo ERROR: invalid chunk state when deallocating address 0x12", "0x12", ""),
        ("[1][klog] INFO: <== fatal page fault, PC at 0x1234", "", "0x1234"),
        ("ERROR: libFuzzer: timeout after 2 seconds", "", ""),
        ("ERROR: AddressSanitizer: SEGV on unknown address 0x12345678901234567 (pc 0x1z T0)", "", ""),
    ],
)
def test_addresses_of_a_report(line: str, address: str, pc: str) -> None:
    found = parsed(f"x\n{line}\n")
    assert (found.address, found.pc) == (address, pc)


@pytest.mark.parametrize("name", sorted(path.stem for path in OUTPUTS.glob("*.txt")))
def test_but_for_a_deadly_signal_only_kind_access_and_addresses_decide(name: str) -> None:
    report = parse((OUTPUTS / f"{name}.txt").read_bytes())
    if report and report.kind != "deadly signal":
        assert severity(report) == severity(
            replace(report, frames=(Frame("f"),), summary="x", artifacts=(), base64=None)
        )


texts = st.text(max_size=40)
hexadecimal = st.just("") | st.integers(0, 2**64 - 1).map(hex)


@given(
    st.builds(
        CrashReport,
        st.sampled_from(["SEGV", "BUS", "heap-buffer-overflow", "use after free", "timeout", "deadly signal"]) | texts,
        access=st.sampled_from(["", "READ", "WRITE", "READ 1", "WRITE 30", "odd"]) | texts,
        address=hexadecimal,
        pc=hexadecimal,
        frames=st.lists(st.builds(Frame, texts), max_size=3).map(tuple),
    )
)
def test_each_crash_has_one_sentence_with_what_decided(report: CrashReport) -> None:
    found = severity(report)
    assert found.effect in EFFECTS
    assert found.facts[0] == report.kind
    assert found.sentence.startswith(f"{found.effect}: {found.reason}")
    assert not re.search("[\0-\x1f\x7f-\x9f]", found.sentence)
