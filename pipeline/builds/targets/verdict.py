"""Whether a file is a fuzz target that the guest can run; if not, why, and what to do about it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.builds.elf import ElfFacts, release
from pipeline.text.printable import one_line

LOADER = "/lib64/ld-linux-x86-64.so.2"
"""The guest's loader, which a program names as its interpreter."""

MACHINE = ("x86-64", 64)
"""The machine of the guest, and its bits."""

MARK = b"LLVMFuzzerTestOneInput"
"""What a script has in it so that ClusterFuzz takes it for a target."""

EXTENSIONS = ("", ".exe", ".par")
"""What may be behind the dot of a target's name. ClusterFuzz opens no other file."""

_SUFFIXES = ("_fuzzer", "_fuzztest", "_fuzz_test")
# ClusterFuzz's rule, and fit to be a directory's name; see pipeline/fuzz/targets.py
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,199}")
_WITH_LIBFUZZER = "build it with libFuzzer: link it with -fsanitize=fuzzer, or $LIB_FUZZING_ENGINE of OSS-Fuzz"


@dataclass(frozen=True)
class Objection:
    """Why a file is no target, in one clause, and what to do."""

    reason: str
    hint: str = ""
    broken: bool = True
    """Whether it looks like a target, or somebody may take it for one."""
    needed: bool = False
    """Whether targets may need it when they run."""


PROGRAM = Objection("it has neither LLVMFuzzerTestOneInput nor libFuzzer in it", broken=False, needed=True)
SCRIPT = Objection("it is a script", broken=False, needed=True)
OBJECT = Objection("it is an object file, not a program", broken=False)
DRIVER = Objection("it runs fuzz targets of Java or JavaScript", broken=False, needed=True)
EXTRA = Objection("it lies in __extra_build, where nothing is a target", broken=False)
WRAPPER = Objection(
    "it is a script, which only starts another program",
    "build the target as a program of its own; targets in Java, Python and JavaScript cannot be run",
)
NO_PROGRAM = Objection(
    "its name is that of a target, but it is no ELF file", "was it built for Linux, and copied whole?"
)


def stem(name: str) -> tuple[str, str]:
    """A file's name without its extension, and that; with @ in it, dots belong to the name. As ClusterFuzz does it."""
    path = PurePosixPath(name)
    return (name, "") if "@" in name else (path.stem, path.suffix)


def named_like_target(name: str) -> bool:
    """Whether ClusterFuzz would take it for a target by its name alone."""
    start, extension = stem(name)
    return extension in EXTENSIONS and start.endswith(_SUFFIXES)


def of_program(path: PurePosixPath, facts: ElfFacts, *, executable: bool, glibc: str) -> Objection | None:
    """What keeps an ELF file from being a target; None: it is one.

    A program is one if libFuzzer is in it, even if the mark is not: stripping removes that. A static one is, too: it
    runs without the guest's loader; only a sanitizer cannot be in it. `glibc` is the version that the guest has; ""
    if it is not known.
    """
    if facts.kind == "object":
        return OBJECT
    if not (facts.target or facts.engine or named_like_target(path.name)):
        return PROGRAM
    if facts.kind != "program":
        return Objection(
            "it is a shared library, not a program", _WITH_LIBFUZZER, broken=executable, needed=not executable
        )
    return (
        _other_machine(facts)
        or _other_loader(facts)
        or _other_engine(facts)
        or _newer_glibc(facts, glibc)
        or (None if executable else Objection("it may not be executed", f"chmod +x {shlex.quote(one_line(str(path)))}"))
        or _bad_name(path.name)
    )


def _other_machine(facts: ElfFacts) -> Objection | None:
    if (facts.machine, facts.bits) == MACHINE:
        return None
    return Objection(f"it is for {facts.machine} with {facts.bits} bits", "build it for x86-64 with 64 bits")


def _other_loader(facts: ElfFacts) -> Objection | None:
    if facts.interpreter in ("", LOADER):
        return None
    shown = one_line(facts.interpreter, 100)
    if "ld-musl" in facts.interpreter:
        return Objection(
            f"it is made for musl, not for glibc: its loader is {shown}",
            "build it on Debian, or with --target=x86_64-linux-gnu",
        )
    return Objection(
        f"the guest does not have its loader, {shown}", f"build it with -Wl,--dynamic-linker={LOADER}, or on Debian"
    )


def _other_engine(facts: ElfFacts) -> Objection | None:
    if facts.engine == "libFuzzer":
        return None
    if facts.engine:
        return Objection(f"it is made for {facts.engine}, not for libFuzzer", _WITH_LIBFUZZER)
    if facts.target:
        return Objection("it has LLVMFuzzerTestOneInput, but no fuzzing engine in it", _WITH_LIBFUZZER)
    return Objection("its name is that of a target, but no fuzzing engine is in it", _WITH_LIBFUZZER)


def _newer_glibc(facts: ElfFacts, glibc: str) -> Objection | None:
    if not glibc or release(facts.glibc) <= release(glibc):
        return None
    return Objection(
        f"it needs glibc {facts.glibc}, and the guest has {glibc}",
        f"build it on a system that has glibc {glibc} or an older one",
    )


def _bad_name(name: str) -> Objection | None:
    extension = stem(name)[1]
    if extension not in EXTENSIONS:
        return Objection(f"no target's name ends with {one_line(extension, 40)}", "rename it, without that ending")
    if not _NAME.fullmatch(name):
        return Objection(
            "its name cannot be a target's",
            "rename it: up to 200 letters, digits and _ . @ -, of which . @ - are not the first",
        )
    return None
