"""Large fuzz targets, as their user would have built them: one small program, grown to any size.

It is compiled once, with libFuzzer, AddressSanitizer and debug information, and with a constant of the wanted size in
.rodata: a section that is loaded, as what is only appended to a program goes when its debug information does. Each
target is a copy with a constant and a build id of its own. The constants are bytes of the compiler's own programs, in
which every byte value stands for another one, by a different rule for each target: so they share no block, and LZ4
finds the repetitions of real programs. It makes 10 bytes of 22, of real targets 10 of 20.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.builds.linux.compiler import Compiler, unpack

PACKAGE = "grown"
"""The package of the targets: the name of their directory."""

_SOURCE = """\
#include <stddef.h>
#include <stdint.h>
extern const volatile unsigned char constant[];
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 1) (void)constant[data[0] << 8 | data[1]];
    return 0;
}
"""
_CONSTANT = """\
.section .rodata.constant, "a"
.balign 4096
.globl constant
constant: .incbin "constant"
.section .note.GNU-stack, "", @progbits
"""
_MARK = random.Random("constant").randbytes(64)
"""What the constant begins with in the program that is copied."""

_BUILD_ID = random.Random("build id").randbytes(20)
_LIMIT = 300.0  # seconds for the compiler
_MATERIAL = ("libLLVM.so.*", "libclang-cpp.so.*")
_STEP = 7 << 20  # bytes of the material between the constants of two targets


@dataclass(frozen=True)
class GrownTargets:
    """The directory of the targets, what they are made of, and how many there are."""

    directory: Path
    tools: Path
    """The directory with the store's compiler."""
    count: int
    size: int
    """How large each constant is, in bytes."""

    @property
    def names(self) -> list[str]:
        """The names of all targets."""
        return [f"grown_{number:03}_fuzzer" for number in range(self.count)]

    def make(self, sysroot: Path, work: Path) -> None:
        """Make all targets. `work` is a new directory for what is needed meanwhile."""
        self.directory.mkdir()
        program = _compiled(Compiler(self.tools), sysroot, work, self.size)
        (work / "program").write_bytes(program)
        for number in range(self.count):
            self._write(number, number, program)

    def change(self, number: int, work: Path) -> None:
        """Give one target another constant."""
        self._write(number, self.count + number, (work / "program").read_bytes())

    def _write(self, number: int, variant: int, program: bytes) -> None:
        at, path = program.index(_MARK), self.directory / self.names[number]
        beginning = program[:at].replace(_BUILD_ID, random.Random(variant).randbytes(len(_BUILD_ID)))
        with path.open("wb") as stream:
            stream.write(beginning)
            for part in self._constant(variant):
                stream.write(part)
            stream.write(program[at + self.size :])
        path.chmod(0o755)

    def _constant(self, variant: int) -> Iterator[bytes]:
        files = [path for pattern in _MATERIAL for path in sorted(self.tools.glob(pattern))]
        material = sum(path.stat().st_size for path in files)
        rule = list(range(256))
        random.Random(variant).shuffle(rule)
        at, left = variant * _STEP % material, self.size
        while left:
            part = _piece(files, at, left)
            yield part.translate(bytes(rule))
            at, left = (at + len(part)) % material, left - len(part)


def _piece(files: list[Path], at: int, most: int) -> bytes:
    """What lies at this offset in the files one after the other: at most so many bytes, and of one file."""
    for path in files:
        if at < (size := path.stat().st_size):
            with path.open("rb") as stream:
                stream.seek(at)
                return stream.read(most)
        at -= size
    raise AssertionError("the offset is that of no file")


def _compiled(compiler: Compiler, sysroot: Path, work: Path, size: int) -> bytes:
    root = unpack(sysroot, work / "root")
    (work / "grown.c").write_text(_SOURCE)
    (work / "constant.s").write_text(_CONSTANT)
    with (work / "constant").open("wb") as stream:
        stream.write(_MARK + b"\xff" * (size - len(_MARK)))
    words = ("-g", "-O1", "-fsanitize=fuzzer,address", f"-Wl,--build-id=0x{_BUILD_ID.hex()}")
    output = work / "linked"
    compiler.link(
        *words, "grown.c", "constant.s", "-lstdc++", "-lm", directory=work, output=output, root=root, timeout=_LIMIT
    )
    program = output.read_bytes()
    assert program.count(_MARK) == program.count(_BUILD_ID) == 1, "what is exchanged is there once"
    assert program.index(_BUILD_ID) < program.index(_MARK), "notes come first"
    return program
