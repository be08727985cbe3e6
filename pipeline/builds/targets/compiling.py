"""Compiling a target from its sources, for the guest, by the compiler of the store.

What comes out is a directory with the program, with debug information; or, if the sources are wrong, with nothing, and
the compiler's words about them: so one target that does not compile costs only itself.
"""

import errno
import os
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pipeline.builds.linux.compiler import WRONG_SOURCE, Compiler, unpack
from pipeline.builds.targets.sources import NAME, SourceTarget
from pipeline.errors import ToolFailed, ToolLied
from pipeline.host.faults import host_faults

FAULTS_OF_HOST = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM)))
"""What the compiler says when the host is at fault, although it ends as if the source were."""


Variant = Literal["fuzz", "coverage"]
"""What a program is compiled for: to be fuzzed, or to count which lines inputs reach."""

_COUNTED = ("-fprofile-instr-generate", "-fcoverage-mapping", "-mllvm", "-runtime-counter-relocation=true")
"""Clang's source-based coverage; the last two words keep the counts when the target crashes or is killed."""


def words(target: SourceTarget, variant: Variant = "fuzz") -> tuple[str, ...]:
    """What clang is told about a target, but for its sources and libraries: the target's own words come last.

    A tail call would hide a function from the stack, and so would a frame without a pointer. What counts lines has no
    sanitizers: inputs that crash are to be counted to their end.
    """
    sanitizers = target.sanitizers if variant == "fuzz" else ()
    return (
        *("-O1", "-gdwarf-4", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"),
        *("-ffunction-sections", "-fdata-sections"),
        f"-fsanitize={','.join(('fuzzer', *sanitizers))}",
        *(_COUNTED if variant == "coverage" else ()),
        *(f"-D{macro}" for macro in target.defines),
        *(f"-I{directory}" for directory in target.include),
        *target.flags,
    )


def parameters(target: SourceTarget, variant: Variant) -> dict[str, str]:
    """What the compiler is told, as texts by name for a record: if one changes, the target is compiled again."""
    return {
        "words": shlex.join(words(target, variant)),
        "sources": shlex.join(target.sources),
        "link": shlex.join(target.libraries),
    }


def make(
    directory: Path,
    target: SourceTarget,
    compiler: Compiler,
    sysroot: Path,
    said: Path,
    output: Path,
    *,
    timeout: float,
    variant: Variant = "fuzz",
) -> None:
    """Compile the target, whose paths are relative to `directory`, into the new directory `output`.

    The file `said` gets the compiler's words if the sources are wrong, and is empty otherwise. `timeout` is in seconds,
    for the run of the compiler. Raises StoreError, or ToolError for any other failure.
    """
    linked = ("-Wl,--gc-sections,--build-id=sha1", *(f"-l{name}" for name in target.libraries), "-lstdc++", "-lm")
    with host_faults(f"compiling {target.name}"), TemporaryDirectory(dir=output.parent) as scratch:
        root = unpack(sysroot, Path(scratch, "root"))
        output.mkdir()
        try:
            compiler.link(
                *words(target, variant), *target.sources, *linked,
                directory=directory, output=output / target.name, root=root, timeout=timeout,
            )  # fmt: skip
        except ToolFailed as error:
            if error.code != WRONG_SOURCE or any(fault in error.detail for fault in FAULTS_OF_HOST):
                raise
            _, _, its_words = error.detail.partition("\n")  # without the command line, which has a temporary path in it
            said.write_text(f"{its_words}\n")
        except ToolLied as error:  # its own words say so, such as -o or -c
            said.write_text(f"{error}\n")
        else:
            said.write_bytes(b"")


def failure(target: SourceTarget, said: Path) -> ToolFailed | None:
    """The error, to be shown, about a target that does not compile; None if it does, or was not tried.

    `said` is the file with the compiler's words. Raises OSError.
    """
    its_words = said.read_text(errors="replace") if said.exists() else ""
    if not its_words:
        return None
    return ToolFailed(
        f"{target.name} does not compile, so the guest has to do without it",
        hint=f"mend {target.sources[0]}, or what it includes, or what {NAME} says; the next run makes it",
        detail=its_words,
    )
