"""What the real QEMU says when it refuses its arguments, and what of it is told."""

import subprocess
from pathlib import Path

import pytest

from pipeline.vm.qemu.causes import Evidence
from pipeline.vm.qemu.verdict import judge
from tests.waiting import SOON

QEMU = "qemu-system-x86_64"


def refused(*arguments: str) -> str:
    """The verdict on a boot whose QEMU ends with what it says of these arguments."""
    command = [QEMU, "-display", "none", "-S", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SOON, check=False)
    assert done.returncode == 1
    return str(judge(Evidence("spawn", qemu=done.stderr.decode(), ended=True)).error())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("-machine nonsense", "unsupported machine type"),  # Use -machine help to list supported machines
        ("-m 1x", "-m 1x: Parameter 'size' expects"),  # Optional suffix k, M, G, ... peta- and exabytes, respectively.
        ("-global x", "-global x: Invalid parameter 'x'"),  # a warning, and a hint to it, before
        ("-cpu nonsense", "unable to find CPU model 'nonsense'"),
        ("-no-such-option", "-no-such-option: invalid option"),
        ("-machine q35,nonsense=1", "nonsense' not found"),
        ("-smp 5000", "Invalid SMP CPUs 5000"),
        ("-serial nonsense", "-serial nonsense: "),
    ],
)
def test_the_line_that_says_why_is_told(arguments: str, told: str) -> None:
    said = refused(*arguments.split())
    assert said.startswith(f"QEMU refuses its arguments: {QEMU}: ")
    assert told in said


def test_what_brings_a_cdrom_back_is_told(tmp_path: Path) -> None:
    (tmp_path / "iso").write_bytes(bytes(4096))
    bare = ["-display", "none", "-S", "-machine", "q35,sata=off", "-cdrom", str(tmp_path / "iso")]
    done = subprocess.run([QEMU, *bare], stdin=subprocess.DEVNULL, capture_output=True, timeout=SOON, check=False)
    refusal = judge(Evidence("spawn", qemu=done.stderr.decode(), ended=True)).error()
    assert "-cdrom" in str(refusal)
    assert "-machine sata=on" in refusal.hint
    with subprocess.Popen([QEMU, *bare, "-machine", "sata=on", "-qmp", "stdio"], stdin=-1, stdout=-1) as mended:
        said, _ = mended.communicate(b'{"execute": "qmp_capabilities"}{"execute": "quit"}', SOON)
    assert (mended.returncode, b"QMP" in said) == (0, True)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("qemu: unhandled\nUse something else\n", "qemu: unhandled"),
        (
            "2026-01-02T03:04:05.678Z qemu-system-x86_64: no\nTry yes\n",
            "2026-01-02T03:04:05.678Z qemu-system-x86_64: no",
        ),
        ("emulator: no\nUse yes\n", "Use yes"),
        (
            "qemu-system-x86_64: warning: old\nqemu-system-x86_64: no\nqemu-system-x86_64: info: x\n",
            "qemu-system-x86_64: no",
        ),
    ],
    ids=["hw code", "with timestamps", "a name of its own", "info"],
)
def test_words_of_other_builds(said: str, told: str) -> None:
    assert str(judge(Evidence("spawn", qemu=said, ended=True)).error()) == f"QEMU refuses its arguments: {told}"
