"""Marks that compilers and fuzzing engines leave in programs: bytes by which an ELF file tells what it is built with.

They are looked for where a program still has them when it has been stripped. Only what makes it a fuzz target is looked
for in all of the file, as ClusterFuzz and OSS-Fuzz do.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.builds.elf.structure import Range

_CHUNK = 1 << 20  # stays in the processor's cache while several patterns are looked for
_OVERLAP = 512  # longer than all that a pattern takes

_TARGET = re.compile(rb"LLVMFuzzer(?:TestOneInput|RunDriver)")
# Who uses a runtime refers to it by name, and a runtime that is linked in exports its names. __ubsan_handle_* tells
# nothing: clang links UBSan's runtime into every program with -fsanitize=fuzzer, and into the other runtimes
_RUNTIME = re.compile(rb"__(?:(?:a|m|t|hwa|l)san_init|dfsan_arg_tls)\0|__ubsan_handle_\w{1,60}_minimal\b")
# A type descriptor of UBSan, which the checks refer to: kind (integer, float, other), size, name in quotes. See
# TypeDescriptor in compiler-rt/lib/ubsan/ubsan_value.h. GCC makes the same. Shorter texts are in all sorts of files
_DESCRIPTOR = re.compile(rb"\0'(?<=(?:\0\0[\x01-\x0f]|\x01\0[\x10-\x80]|\xff\xff\0)\0')[^'\0]{3,200}'\0")
_SANITIZERS = {
    b"__asan_init\0": "address",
    b"__msan_init\0": "memory",
    b"__tsan_init\0": "thread",
    b"__hwasan_init\0": "hwaddress",
    b"__lsan_init\0": "leak",
    b"__dfsan_arg_tls\0": "dataflow",
}
_RUNTIMES = {
    # Not libclang_rt.ubsan, for the same reason
    re.compile(r"lib(?:clang_rt\.)?asan\b"): "address",
    re.compile(r"lib(?:clang_rt\.)?msan\b"): "memory",
    re.compile(r"lib(?:clang_rt\.)?tsan\b"): "thread",
    re.compile(r"lib(?:clang_rt\.)?hwasan\b"): "hwaddress",
    re.compile(r"lib(?:clang_rt\.)?lsan\b"): "leak",
    re.compile(r"libubsan\b"): "undefined",
}
_LIBFUZZER = re.compile(rb"libFuzzer: (?:deadly signal|timeout|out-of-memory)")
_JAZZER = re.compile(rb"com/code_intelligence/jazzer/")
_ENGINES = {
    "honggfuzz": re.compile(rb"\x01_LIBHFUZZ_(?:PERSISTENT|NETDRIVER)_BINARY_SIGNATURE_\x02"),
    "AFL++": re.compile(rb"##SIG_AFL_[A-Z_]{1,40}##"),
    "Centipede": re.compile(rb"CENTIPEDE_RUNNER_FLAGS\0"),
}


@dataclass
class Marks:
    """What was found in a file; see ElfFacts for what the names mean."""

    sanitizers: set[str] = field(default_factory=set)
    engine: str = ""
    target: set[bytes] = field(default_factory=set)
    """Those of the two names that make a fuzz target."""


def of_runtimes(libraries: Iterable[str]) -> set[str]:
    """The sanitizers whose runtimes are among these libraries."""
    return {name for library in libraries for pattern, name in _RUNTIMES.items() if pattern.match(library)}


def find(descriptor: int, size: int, names: Sequence[Range], constants: Sequence[Range]) -> Marks:
    """Look for the marks in an open file of `size` bytes.

    `names` are the parts of it with the names that it shares with libraries. Parts that the file does not have hold
    nothing: one that shrinks meanwhile is no fault. Raises OSError.
    """
    marks = Marks()
    for part in _parts(descriptor, names):
        marks.sanitizers.update(_SANITIZERS.get(name, "undefined") for name in _RUNTIME.findall(part))
    for start in range(0, size, _CHUNK):
        end = min(start + _CHUNK, size)
        searches = _wanted(marks, any(first < end and start < last for first, last in constants))
        if searches:
            part = os.pread(descriptor, end - start + _OVERLAP, start)
            for search in searches:
                search(marks, part)
    marks.engine = _engine(marks, lambda: _parts(descriptor, constants))
    return marks


def _parts(descriptor: int, ranges: Iterable[Range]) -> Iterator[bytes]:
    for first, last in _merged(ranges):
        for start in range(first, last, _CHUNK):
            yield os.pread(descriptor, min(_CHUNK + _OVERLAP, last - start), start)


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """The same parts, of which none overlaps another: a file may claim a thousand times that it has all of itself."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


def _wanted(marks: Marks, has_constants: bool) -> Sequence[Callable[[Marks, bytes], None]]:
    """The searches for what has not been found yet."""
    wanted = [_look_for_target] if len(marks.target) < 2 else []
    if has_constants and "undefined" not in marks.sanitizers:
        wanted.append(_look_for_checks)
    if has_constants and not marks.engine:
        wanted.append(_look_for_messages)
    return wanted


def _look_for_target(marks: Marks, part: bytes) -> None:
    marks.target.update(_TARGET.findall(part))


def _look_for_checks(marks: Marks, part: bytes) -> None:
    if _DESCRIPTOR.search(part):
        marks.sanitizers.add("undefined")


def _look_for_messages(marks: Marks, part: bytes) -> None:
    if _LIBFUZZER.search(part):
        marks.engine = "libFuzzer"


def _engine(marks: Marks, parts: Callable[[], Iterator[bytes]]) -> str:
    """The engine of a file in which libFuzzer's messages were found or not.

    Jazzer's driver contains libFuzzer, and others than libFuzzer have an LLVMFuzzerRunDriver, too. If none of them is
    there, that name means libFuzzer in a library.
    """
    if marks.engine:
        return "Jazzer" if any(_JAZZER.search(part) for part in parts()) else marks.engine
    if not marks.target:
        return ""
    for part in parts():
        for name, pattern in _ENGINES.items():
            if pattern.search(part):
                return name
    return "libFuzzer" if b"LLVMFuzzerRunDriver" in marks.target else ""
