"""Three real libraries, of which fuzz targets are built outside of Topcoat, as OSS-Fuzz does it: with planted bugs."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.builds.linux.compiler import Compiler, unpack

LONG = 300.0


@dataclass(frozen=True)
class Library:
    """A library from its source package on PyPI, a target for it, and the line that is planted in it."""

    package: str
    version: str
    target: str
    """The target's file, in C or C++."""
    source: str
    words: tuple[str, ...]
    """What clang is told besides; paths are relative to the unpacked package."""
    planted_in: str
    before: str
    """The text behind which the line is planted."""
    line: str
    kind: str
    """What the crash is called."""
    function: str


LIBRARIES = (
    Library(
        package="lz4",
        version="4.4.4",
        target="lz4_fuzzer.c",
        source="""
#include <stddef.h>
#include <stdint.h>
#include "lz4.h"
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char out[4096];
    if (size < 4000) LZ4_decompress_safe((const char *)data, out, (int)size, sizeof out);
    return 0;
}
""",
        words=("-fsanitize=fuzzer,address,undefined", "-Ilz4libs", "lz4libs/lz4.c"),
        planted_in="lz4libs/lz4.c",
        before="int LZ4_decompress_safe(const char* source, char* dest, int compressedSize, int maxDecompressedSize)\n"
        "{\n",
        line="    if (compressedSize > 2 && source[0] == 'L') ((volatile char *)malloc(8))[7 + compressedSize] = 1;\n",
        kind="heap-buffer-overflow",
        function="LZ4_decompress_safe",
    ),
    Library(
        package="python-rapidjson",
        version="1.25",
        target="json_fuzzer.cc",
        source="""
#include <cstddef>
#include <cstdint>
#include "rapidjson/document.h"
extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    rapidjson::Document document;
    document.Parse(reinterpret_cast<const char *>(data), size);
    return 0;
}
""",
        # Recovering, as UBSan is by default: what it finds ends nothing by itself
        words=("-std=c++17", "-fsanitize=fuzzer,address,undefined", "-Irapidjson/include"),
        planted_in="rapidjson/include/rapidjson/reader.h",
        before="    void ParseTrue(InputStream& is, Handler& handler) {\n",
        line="        static volatile int near = 0x7fffffff; near = near + static_cast<int>(is.Tell() + 1);\n",
        kind="integer-overflow",
        function="ParseTrue",
    ),
    Library(
        package="Brotli",
        version="1.1.0",
        target="brotli_fuzzer.c",
        source="""
#include <stddef.h>
#include <stdint.h>
#include <brotli/decode.h>
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t out[4096];
    size_t length = sizeof out;
    BrotliDecoderDecompress(size, data, &length, out);
    return 0;
}
""",
        words=(
            *("-fsanitize=fuzzer,memory", "-Ic/include"),
            *(f"c/dec/{name}.c" for name in ("bit_reader", "decode", "huffman", "state")),
            *(f"c/common/{name}.c" for name in ("constants", "context", "dictionary", "platform", "shared_dictionary")),
            "c/common/transform.c",
        ),
        planted_in="c/dec/decode.c",
        before="    uint8_t decoded_buffer[BROTLI_ARRAY_PARAM(*decoded_size)]) {\n",
        line="  volatile int seen[4]; if (encoded_size > 2 && encoded_buffer[0] == 'B' && seen[encoded_size & 3]) "
        "return 0;\n",
        kind="use-of-uninitialized-value",
        function="BrotliDecoderDecompress",
    ),
)


def build_all(out: Path, work: Path, tools: Path, sysroot: Path) -> dict[str, int]:
    """Build all targets into `out`. Returns the number of the planted line, by the target's name."""
    root, clang = unpack(sysroot, work / "root"), Compiler(tools)
    return {Path(one.target).stem: _build(one, out, work, clang, root) for one in LIBRARIES}


def _build(library: Library, out: Path, work: Path, clang: Compiler, root: Path) -> int:
    place = _fetched(library, work)
    planted = place / library.planted_in
    text = planted.read_text()
    assert text.count(library.before) == 1, library
    at = text.index(library.before) + len(library.before)
    planted.write_text(text[:at] + library.line + text[at:])
    (place / library.target).write_text(library.source)
    words = ("-g", "-O1", "-fno-omit-frame-pointer", library.target, *library.words, "-lstdc++", "-lm")
    program = out / Path(library.target).stem
    clang.link(*words, directory=place, output=program, root=root, timeout=LONG)
    return text[:at].count("\n") + 1


def _fetched(library: Library, work: Path) -> Path:
    """The unpacked source package, fetched as pip is set up to."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    wanted = ["--no-binary", ":all:", f"{library.package}=={library.version}", "--dest", str(work)]
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    subprocess.run([*command, *wanted], env=environment, check=True, timeout=LONG, capture_output=True)
    place = work / library.package
    (archive,) = work.glob(f"{library.package.replace('-', '[-_]')}-{library.version}.tar.gz")
    with tarfile.open(archive) as packed:
        for member in _inside(packed):
            _extract(packed, member, place / member.name)
    (inner,) = place.iterdir()
    return inner


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> None:
    """As TarFile.extract does it, whose filters Python has since 3.11.4 only, and must be given since 3.12."""
    content = packed.extractfile(member)
    assert content is not None
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(content.read())


def _inside(packed: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    yield from (member for member in packed if member.isfile() and ".." not in Path(member.name).parts)
