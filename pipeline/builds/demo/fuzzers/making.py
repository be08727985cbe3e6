"""Making the demo guest's fuzzers: from their sources to what the guest gets, and what the host knows of them.

The guest gets a cpio archive with stripped programs. On the host stay `fuzzers.json` and `tests.json`, in the formats
of a Fuchsia build, and below `.build-id` the same programs with debug information, where symbolizers look for them.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.builds.demo.compiler import RUNTIME, SANITIZER, SOURCES_SHOWN, TARGET, WRONG_SOURCE, Compiler, unpack
from pipeline.builds.demo.fuzzers import FAILED, OPTIONS, PACKAGE, DemoFuzzer, all_in
from pipeline.errors import ToolFailed, ToolLied
from pipeline.host.faults import host_faults
from pipeline.images import cpio
from pipeline.store.publish import publish_json

_BUILD_ID = re.compile(rb"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0(.{20})", re.DOTALL)
"""The ELF note with a build id of 20 bytes (a SHA-1): the sizes of name and content, the type, the name, the id."""

_FAULTS_OF_HOST = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM)))
"""What the compiler says when the host is at fault, although it ends as if the source were."""

_LIBC = f"**/{TARGET}/libc.so.6"


def make(sources: Path, compiler: Compiler, sysroot: Path, image: Path, directory: Path, *, timeout: float) -> None:
    """Compile all fuzzers in `sources` into the archive `image`, and `directory` with all that stays on the host.

    A fuzzer that does not compile is left out, and `failures(directory)` tells of it; that none compiles is an error.
    `timeout` is in seconds, for each run of a program. Raises StoreError or ToolError.
    """
    with host_faults("making the fuzzers of the demo guest"):
        directory.mkdir()
        with TemporaryDirectory(dir=image.parent) as scratch:
            build = _Making(compiler, unpack(sysroot, Path(scratch, "root")), directory, timeout)
            programs = build.compile(all_in(sources))
            image.write_bytes(cpio.encode(build.entries(programs)))
        publish_json(directory / "fuzzers.json", list(_labels(programs)))
        publish_json(directory / "tests.json", [_test(fuzzer) for fuzzer in programs])


class _Making:
    def __init__(self, compiler: Compiler, root: Path, made: Path, timeout: float) -> None:
        self.compiler, self.root, self.made, self.timeout = compiler, root, made, timeout

    def compile(self, fuzzers: list[DemoFuzzer]) -> dict[DemoFuzzer, bytes]:
        """The stripped programs of the fuzzers that compile. The unstripped ones are filed by their build ids."""
        programs, failed = {}, {}
        for fuzzer in fuzzers:
            try:
                programs[fuzzer] = self._program(fuzzer)
            except ToolFailed as error:
                if error.code != WRONG_SOURCE or any(fault in error.detail for fault in _FAULTS_OF_HOST):
                    raise
                failed[fuzzer] = error
        if failed and not programs:
            raise next(iter(failed.values()))
        for fuzzer, failure in failed.items():
            self._keep_words(fuzzer, failure)
        return programs

    def _keep_words(self, fuzzer: DemoFuzzer, failure: ToolFailed) -> None:
        (self.made / FAILED).mkdir(exist_ok=True)
        _, _, words = failure.detail.partition("\n")  # without the command line, which has a temporary path in it
        (self.made / FAILED / f"{fuzzer.name}.txt").write_text(f"{words}\n")

    def entries(self, programs: Mapping[DemoFuzzer, bytes]) -> Iterator[cpio.CpioEntry]:
        """The entries of the guest's archive: libraries, and a name space for each fuzzer."""
        yield from (cpio.directory(name) for name in ("lib", "data", "data/fuzz", f"data/fuzz/{PACKAGE}"))
        yield from (cpio.file(f"lib/{name}", (self.root / path).read_bytes(), 0o755) for path, name in RUNTIME.items())
        # The guest has these as they are; here they are for the function names in stacks
        for library in (self.root / SANITIZER, *self.root.glob(_LIBC)):
            self._file_by_id(library)
        for fuzzer, program in programs.items():
            yield from _name_space(fuzzer, program)

    def _program(self, fuzzer: DemoFuzzer) -> bytes:
        program = self.root / fuzzer.name
        sources = (fuzzer.source, fuzzer.source.with_name(OPTIONS))
        self.compiler.compile(sources, program, self.root, timeout=self.timeout)
        self._file_by_id(program)
        stripped = program.with_name(f"{program.name}.stripped")
        self.compiler.strip(program, stripped, timeout=self.timeout)
        return stripped.read_bytes()

    def _file_by_id(self, program: Path) -> None:
        found = build_id(program.read_bytes())
        if found is None:
            raise ToolLied(f"{program.name} has no build id", hint="use the packages of Debian 12 or 13")
        target = self.made / ".build-id" / found[:2] / f"{found[2:]}.debug"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(program, target)


def build_id(program: bytes) -> str | None:
    """The build id of an ELF file in hexadecimal, or None if it has none of the usual 20 bytes."""
    found = _BUILD_ID.search(program)
    return found[1].hex() if found else None


def _name_space(fuzzer: DemoFuzzer, program: bytes) -> Iterable[cpio.CpioEntry]:
    package = f"{fuzzer.home}/pkg"
    yield from (cpio.directory(name) for name in (fuzzer.home, f"{fuzzer.home}/data", f"{fuzzer.home}/tmp", package))
    yield cpio.file(f"{package}/{fuzzer.name}", program, 0o755)
    if fuzzer.dictionary:
        yield cpio.file(f"{package}/{fuzzer.dictionary.name}", fuzzer.dictionary.read_bytes())
    if fuzzer.seeds:
        yield cpio.directory(f"{package}/corpus")
        yield from (cpio.file(f"{package}/corpus/{seed.name}", seed.read_bytes()) for seed in fuzzer.seeds)


def _label(fuzzer: DemoFuzzer) -> str:
    return f"//{SOURCES_SHOWN}:{fuzzer.name}"


def _labels(fuzzers: Iterable[DemoFuzzer]) -> Iterator[dict[str, str]]:
    """The entries of fuzzers.json; readers put those with the same label together."""
    for fuzzer in fuzzers:
        label = _label(fuzzer)
        yield {
            "label": label,
            "package": PACKAGE,
            "package_url": f"fuchsia-pkg://fuchsia.com/{PACKAGE}",
            "fuzzer": fuzzer.name,
            "manifest": f"{fuzzer.name}.cm",
        }
        if fuzzer.dictionary:
            yield {"label": label, "dictionary": f"pkg/{fuzzer.dictionary.name}"}
        if fuzzer.seeds:
            yield {"label": label, "corpus": "pkg/corpus"}


def _test(fuzzer: DemoFuzzer) -> dict[str, object]:
    url = f"fuchsia-pkg://fuchsia.com/{PACKAGE}#meta/{fuzzer.name}.cm"
    return {
        "environments": [{"dimensions": {"device_type": "QEMU"}}],
        "test": {
            "build_rule": "fuchsia_fuzzer_package",
            "cpu": "x64",
            "label": _label(fuzzer),
            "name": url,
            "os": "linux",
            "package_url": url,
        },
    }
