"""Kernels that have halted, by what they print; and what only looks so."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.vm.halt import END, found, found_in_log, only_kernel
from pipeline.vm.qemu import keeper

BOOT = "[00000.000] 00000.00000> zbi: @ 0xffffffff80005de000\r\nwelcome to Zircon\r\n"
SHELL = "[00000.400] 01031.01049> {{{reset}}}\r\n[00000.693] 01040.01050> devmgr: launch OK\r\n$ "
END_OF_ZIRCON = "Halted\r\nentering panic shell loop\r\n! "

HALTED = {
    "old": (
        (
            "k crash\r\n\r\nZIRCON KERNEL PANIC\r\n\r\nUPTIME: 4738ms\r\nBUILDID GIT_867C\r\nstopping other cpus\r\n"
            "panic (caller 0xffffffff8014b41e frame 0xffffff9013e7cf20): ASSERT FAILED at (vm.cpp:516): a > b\r\n"
            f"platform_halt suggested_action 0 reason 9\r\nHalting...\r\nbt#00: 0xffffffff80169b5c\r\n{END_OF_ZIRCON}"
        ),
        "panic (caller 0xffffffff8014b41e frame 0xffffff9013e7cf20): ASSERT FAILED at (vm.cpp:516): a > b",
    ),
    "new": (
        (
            "\r\nZIRCON KERNEL PANIC\r\n\r\nUPTIME: 3ms\r\n{{{reset}}}\r\n\r\n"
            "*** KERNEL PANIC (caller pc: 0xffffffff0038910d, stack frame: 0xffffff97bd72):\r\n"
            f"*** ASSERT FAILED at (a.cc:1): x\r\n\r\n{END_OF_ZIRCON}"
        ),
        "*** ASSERT FAILED at (a.cc:1): x",
    ),
    "its beginning": ("\r\nZIRCON KERNEL PANIC\r\n\r\nUPTIME: 3ms\r\n", "ZIRCON KERNEL PANIC"),
    "with the kernel's pid": ("[00000.693] 00000.00000> ZIRCON KERNEL PANIC\r\n", "ZIRCON KERNEL PANIC"),
    "without the word": (
        f"platform_halt suggested_action 0 reason 9\r\nHalting...\r\n{END_OF_ZIRCON}",
        "platform_halt suggested_action 0 reason 9",
    ),
    "after much else": (f"bt#00: 0x1\r\n{END_OF_ZIRCON}", "entering panic shell loop"),
    "somebody types": (f"{END_OF_ZIRCON}bt\r\nbt#00: 0x1\r\n! ", "entering panic shell loop"),
    "without a shell": ("Halting...\r\nHalted\r\n", "Halted"),
    "arm64": ("HALT: spinning forever... (reason = 9)\r\n", "HALT: spinning forever... (reason = 9)"),
    "Linux": (
        (
            "[   12.345678] Kernel panic - not syncing: sysrq triggered crash\r\n[   12.345680] CPU: 0 PID: 312\r\n"
            "[   12.345700] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r\n"
        ),
        "Kernel panic - not syncing: sysrq triggered crash",
    ),
    "Linux without its beginning": (
        "[   12.3] ---[ end Kernel panic - not syncing: sysrq ]---\r\n",
        "---[ end Kernel panic - not syncing: sysrq ]---",
    ),
    "Linux, asked to": ("[   99.123456] reboot: System halted\r\n", "reboot: System halted"),
}

ALIVE = {
    "a process": "\r\n[00001.000] 01031.01049> ZIRCON KERNEL PANIC\r\n[00001.001] 01031:01049> Halted\r\n",
    "a word in a line": "\r\nfuzzer: ZIRCON KERNEL PANIC is a word\r\nNot Halted\r\nentering panic shell loop?\r\n",
    "Linux's in a line": '\r\n+ echo "Kernel panic - not syncing: x"\r\n',
    "powering off": "platform_halt suggested_action 4 reason 1\r\n",
    "resetting": "platform_halt suggested_action 1 reason 1\r\nRebooting...\r\n",
    "more comes": "Halted\r\nall units\r\n",
    "a process afterwards": f"\r\nZIRCON KERNEL PANIC\r\n{END_OF_ZIRCON}\r\n[00002.000] 01031.01049> hello\r\n",
    "booted again": f"\r\nZIRCON KERNEL PANIC\r\n{END_OF_ZIRCON}\r\n{BOOT}",
    "nothing": "",
}


def write(log: Path, text: str) -> Path:
    log.write_bytes(text.encode())
    return log


@pytest.mark.parametrize(("text", "line"), HALTED.values(), ids=HALTED)
@pytest.mark.parametrize("before", [BOOT, BOOT + SHELL, "x" * (1 << 20) + "\r\n"], ids=["booting", "running", "long"])
def test_a_kernel_that_has_halted(tmp_path: Path, before: str, text: str, line: str) -> None:
    assert found_in_log(write(tmp_path / "serial.log", before + text)) == line


@pytest.mark.parametrize("text", ALIVE.values(), ids=ALIVE)
@pytest.mark.parametrize("before", [BOOT, BOOT + SHELL], ids=["booting", "running"])
def test_a_kernel_that_has_not(tmp_path: Path, before: str, text: str) -> None:
    assert found_in_log(write(tmp_path / "serial.log", before + text)) == ""


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert found_in_log(tmp_path / "serial.log") == ""


@pytest.mark.parametrize(("text", "line"), HALTED.values(), ids=HALTED)
def test_a_log_that_was_rotated_meanwhile(tmp_path: Path, text: str, line: str) -> None:
    """The kernel says no more, and what it said has moved: all of it, or up to any byte."""
    for cut in range(0, len(text) + 1, 7):
        log = write(tmp_path / "serial.log", BOOT + text[:cut])
        assert keeper.rotate(log, 1)
        with log.open("ab") as stream:
            stream.write(text[cut:].encode())
        assert found_in_log(log) == line, cut


def test_a_panic_above_a_long_trace(tmp_path: Path) -> None:
    text, line = HALTED["new"]
    trace = "{{{module:0x1:libc.so:elf:0123456789abcdef}}}\r\n" * 280
    panic = text.removesuffix(END_OF_ZIRCON)
    assert found_in_log(write(tmp_path / "serial.log", f"{BOOT}{SHELL}{panic}{trace}")) == line


def test_a_line_of_a_process_whose_beginning_is_out_of_sight(tmp_path: Path) -> None:
    forged = "entering panic shell loop\n"
    filler = "x" * (END - len(forged) - 1) + "\n"
    assert found_in_log(write(tmp_path / "serial.log", f"[00001.000] 01031.01049> {forged}{filler}")) == ""


@given(st.lists(st.sampled_from([text for text, _ in HALTED.values()]), min_size=1), st.text())
def test_no_process_of_a_zircon_passes_for_its_kernel(texts: list[str], noise: str) -> None:
    lines = [line for text in [*texts, noise] for line in text.splitlines()]
    assert found("\n".join(f"[00001.000] 01031.01049> {line}" for line in lines)) == ""


@pytest.mark.parametrize(
    ("text", "only"),
    [
        (BOOT, True),
        (f"{BOOT}version:\r\n  arch: x86\r\n[00000.100] 00000.00000> INIT: cpu 0\r\n", True),
        (f"{BOOT}[00000.300] 01024.01026> userboot: searching bootfs\r\n", False),
        (BOOT + SHELL, False),
        (BOOT + "{{{rese", False),
        (BOOT + SHELL + BOOT, True),
        ("Booting from ROM..", False),
        ("", False),
    ],
)
def test_a_kernel_without_userspace(text: str, only: bool) -> None:
    assert only_kernel(text.replace("\r", "")) is only
