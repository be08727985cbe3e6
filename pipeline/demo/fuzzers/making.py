"""From the sources of the demo guest's fuzzers to what the guest gets, and to what the host knows of them.

The guest gets a cpio archive with stripped programs. On the host stay `fuzzers.json` and `tests.json` in the formats
of a Fuchsia build, and below `.build-id` the same programs with debug information, where symbolizers look for them.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.demo.compiler import RUNTIME, SANITIZER, SOURCES_SHOWN, TARGET, Compiler, unpack
from pipeline.demo.fuzzers import OPTIONS, PACKAGE, Fuzzer, all_in
from pipeline.errors import ToolLied
from pipeline.faults import host_faults
from pipeline.images import cpio
from pipeline.publish import publish, publish_json

_BUILD_ID = re.compile(rb"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0(.{20})", re.DOTALL)
"""The note of a SHA-1: sizes of name and content, type, name."""

_LIBC = f"**/{TARGET}/libc.so.6"


def make(sources: Path, compiler: Compiler, sysroot: Path, image: Path, directory: Path, *, timeout: float) -> None:
    """Compile all fuzzers in `sources`. Makes the archive `image`, and `directory` with all else.

    Raises StoreError or ToolError.
    """
    with host_faults("making the fuzzers of the demo guest"):
        shutil.rmtree(directory, ignore_errors=True)
        with publish(directory) as made, publish(image) as archive:
            fuzzers, root = all_in(sources), unpack(sysroot, made.parent / "root")
            build = _Making(compiler, root, made, timeout)
            made.mkdir()
            archive.write_bytes(cpio.encode(build.entries(fuzzers)))
            publish_json(made / "fuzzers.json", list(_labels(fuzzers)))
            publish_json(made / "tests.json", [_test(fuzzer) for fuzzer in fuzzers])


class _Making:
    def __init__(self, compiler: Compiler, root: Path, made: Path, timeout: float) -> None:
        self.compiler, self.root, self.made, self.timeout = compiler, root, made, timeout

    def entries(self, fuzzers: list[Fuzzer]) -> Iterator[cpio.Entry]:
        """What the guest gets. On the way everything is compiled, and filed by its build id."""
        yield from (cpio.directory(name) for name in ("lib", "data", "data/fuzz", f"data/fuzz/{PACKAGE}"))
        yield from (cpio.file(f"lib/{name}", (self.root / path).read_bytes(), 0o755) for path, name in RUNTIME.items())
        # The guest has them as they are; stacks need the names of their functions
        for library in (self.root / SANITIZER, *self.root.glob(_LIBC)):
            self._file_by_id(library)
        for fuzzer in fuzzers:
            yield from _name_space(fuzzer, self._program(fuzzer))

    def _program(self, fuzzer: Fuzzer) -> bytes:
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
            raise ToolLied(f"{program.name} has no build id", hint="use the packages of Debian 12")
        target = self.made / ".build-id" / found[:2] / f"{found[2:]}.debug"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(program, target)


def build_id(program: bytes) -> str | None:
    """The build id of an ELF file, in hexadecimal, if it has one of the usual length."""
    found = _BUILD_ID.search(program)
    return found[1].hex() if found else None


def _name_space(fuzzer: Fuzzer, program: bytes) -> Iterable[cpio.Entry]:
    package = f"{fuzzer.home}/pkg"
    yield from (cpio.directory(name) for name in (fuzzer.home, f"{fuzzer.home}/data", f"{fuzzer.home}/tmp", package))
    yield cpio.file(f"{package}/{fuzzer.name}", program, 0o755)
    if fuzzer.dictionary:
        yield cpio.file(f"{package}/{fuzzer.dictionary.name}", fuzzer.dictionary.read_bytes())
    if fuzzer.seeds:
        yield cpio.directory(f"{package}/corpus")
        yield from (cpio.file(f"{package}/corpus/{seed.name}", seed.read_bytes()) for seed in fuzzer.seeds)


def _label(fuzzer: Fuzzer) -> str:
    return f"//{SOURCES_SHOWN}:{fuzzer.name}"


def _labels(fuzzers: Iterable[Fuzzer]) -> Iterator[dict[str, str]]:
    """The entries of fuzzers.json: readers put those of one label together."""
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


def _test(fuzzer: Fuzzer) -> dict[str, object]:
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
