"""The compiler of the demo guest's fuzzers: Debian's clang, fetched as packages and run from the store, without root.

It is never the host's. So the fuzzers are the same bytes on every host, they fit the guest's libc, which is of the
same Debian release, and no package of the host can be missing. What is kept of 90 MB of packages is a directory with
the programs and the libraries that they load, and the `sysroot` that fuzzers are compiled against, as one tar file.
"""

import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.demo.packages import Packages, gather, opened
from pipeline.errors import PackageError
from pipeline.faults import host_faults
from pipeline.publish import publish
from pipeline.tools import Tool, require_output, run

TARGET = "x86_64-linux-gnu"
_LLVM = "usr/lib/llvm-19"  # with build ids in stacks, which clang 14 does not print yet; in Debian 12 and 13
_RUNTIME = f"{_LLVM}/lib/clang/19"
_GCC = f"usr/lib/gcc/{TARGET}/12"

_PROGRAMS = {
    "clang-19": {f"{_LLVM}/bin/clang": "clang"},
    "lld-19": {f"{_LLVM}/bin/lld": "ld.lld"},
    "llvm-19": {f"{_LLVM}/bin/llvm-objcopy": "llvm-objcopy", f"{_LLVM}/bin/llvm-symbolizer": "llvm-symbolizer-19"},
}
_LIBRARIES = {
    "libbsd0": ("libbsd.so.0",),
    "libclang-cpp19": ("libclang-cpp.so.19.1",),
    "libedit2": ("libedit.so.2",),
    "libffi8": ("libffi.so.8",),
    "libgcc-s1": ("libgcc_s.so.1",),
    "libicu72": ("libicudata.so.72", "libicuuc.so.72"),
    "libllvm19": ("libLLVM.so.19.1",),
    "liblzma5": ("liblzma.so.5",),
    "libmd0": ("libmd.so.0",),
    "libstdc++6": ("libstdc++.so.6",),
    "libtinfo6": ("libtinfo.so.6",),
    "libxml2": ("libxml2.so.2",),
    "libz3-4": ("libz3.so.4",),
    "libzstd1": ("libzstd.so.1",),
    "zlib1g": ("libz.so.1",),
}
"""What the programs load, by the names under which they ask for it. libc is the host's."""
_SYSROOT = {
    "libc6": rf"(usr/)?lib/{TARGET}/(libc|libm|libmvec|ld-linux-x86-64)\.so\.\d",
    "libc6-dev": rf"usr/include/.*\.h|usr/lib/{TARGET}/(Scrt1\.o|crt[in]\.o|lib(c|m)\.so|libc_nonshared\.a)",
    "libclang-common-19-dev": rf"{_RUNTIME}/include/(__)?(std|limits|float)\w*\.h",
    "libclang-rt-19-dev": rf"{_RUNTIME}/lib/linux/libclang_rt\.(asan|asan_static|asan-preinit|fuzzer)-x86_64\.(a|so)",
    # Without crtbegin.o clang does not take the directory for one of gcc
    "libgcc-12-dev": rf"{_GCC}/(crt(begin|end)S?\.o|libgcc\.a|libgcc_s\.so)",
    "libgcc-s1": rf"(usr/)?lib/{TARGET}/libgcc_s\.so\.1",
    "libstdc++6": rf"usr/lib/{TARGET}/libstdc\+\+\.so\.6\.[\d.]+",
    "linux-libc-dev": rf"usr/include/(linux/\w+|asm-generic/\S+|{TARGET}/asm/\S+)\.h",
}
_LOADER = "lib64/ld-linux-x86-64.so.2"
_CXX = f"{_GCC}/libstdc++.so"
_RENAMED = {r".*/ld-linux-x86-64\.so\.2": _LOADER, r".*/libstdc\+\+\.so\.6\.[\d.]+": _CXX}
"""Where linker scripts and the linker look for what is a link in Debian's packages."""

PACKAGES = tuple(dict.fromkeys((*_PROGRAMS, *_LIBRARIES, *_SYSROOT)))
"""All that is fetched."""

SANITIZER = f"{_RUNTIME}/lib/linux/libclang_rt.asan-x86_64.so"
RUNTIME = {SANITIZER: "libclang_rt.asan-x86_64.so", _CXX: "libstdc++.so.6"}
"""What fuzzers load that the guest has not: files of the sysroot, and their names for the loader.

Linked into each fuzzer instead, they would make it five times as large.
"""

_SYMBOLIZER = """\
#!/bin/sh
LD_LIBRARY_PATH="${0%/*}" exec "${0%/*}/llvm-symbolizer-19" "$@"
"""
# llvm-symbolizer would fetch debug information from servers by libcurl, which drags in 30 more packages. It never calls
# it for files that are there, and to start it needs no more than a library of this name with this version.
_NO_CURL = "CURL_OPENSSL_4 { *; };\n"


def install(directory: Path, sysroot: Path, provided: Path | None, *, timeout: float) -> None:
    """Make the directory with all programs, and the tar file `sysroot`, of packages that do not stay.

    `provided`: a directory that has the packages; without, apt fetches them. Raises StoreError, ToolMissing,
    PackageError or another ToolError.
    """
    with host_faults("installing the compiler"):
        shutil.rmtree(directory, ignore_errors=True)
        with publish(directory) as programs, publish(sysroot) as archive:
            work = programs.parent
            packages = gather(work / "packages", provided, PACKAGES, timeout=timeout)
            _unpack(packages, programs, archive)
            _make_symbolizer(programs, work, timeout)


def _unpack(packages: Packages, programs: Path, sysroot: Path) -> None:
    programs.mkdir()
    # Decompression does without the interpreter's lock
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        jobs = [workers.submit(_unpack_programs, packages, name, programs) for name in (*_PROGRAMS, *_LIBRARIES)]
        _write_sysroot(packages, sysroot)
        for job in jobs:
            job.result()


def _unpack_programs(packages: Packages, package: str, directory: Path) -> None:
    libraries = _LIBRARIES.get(package, ())
    missing = {*_PROGRAMS.get(package, {}).values(), *libraries}

    def stored_as(name: str) -> str | None:
        path = PurePosixPath(name)
        # The file libz.so.1.2.13 is asked for as libz.so.1
        asked = next((library for library in libraries if path.name.startswith(library)), None)
        in_place = str(path.parent) in (f"lib/{TARGET}", f"usr/lib/{TARGET}")
        return (asked if in_place else None) or _PROGRAMS.get(package, {}).get(name)

    for name, data in _files(packages.find(package), stored_as):
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o755)
        missing.discard(name)
    _refuse_lack(package, sorted(missing))


def _refuse_lack(package: str, missing: list[str]) -> None:
    if missing:
        raise PackageError(f"{package} does not hold {', '.join(missing)}", hint="use the package of Debian 12")


def _files(package: Path, stored_as: Callable[[str], str | None]) -> Iterator[tuple[str, bytes]]:
    with opened(package) as archive:
        for member in archive:
            name = stored_as(str(PurePosixPath(member.name))) if member.isfile() else None
            content = archive.extractfile(member) if name else None
            if name and content:
                yield name, content.read()


def _write_sysroot(packages: Packages, sysroot: Path) -> None:
    with tarfile.open(sysroot, "w") as archive:
        for package, pattern in _SYSROOT.items():
            for name, data in sorted(_matching(packages.find(package), re.compile(pattern)).items()):
                renamed = (new for old, new in _RENAMED.items() if re.fullmatch(old, name))
                _add(archive, next(renamed, name), data)


def _matching(package: Path, names: re.Pattern[str]) -> dict[str, bytes]:
    found = dict(_files(package, lambda name: name if names.fullmatch(name) else None))
    _refuse_lack(package.name, [] if found else [names.pattern])
    return found


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o755 if ".so" in name else 0o644
    archive.addfile(member, io.BytesIO(data))


def _make_symbolizer(directory: Path, work: Path, timeout: float) -> None:
    versions = work / "libcurl.versions"
    versions.write_text(_NO_CURL)
    library = directory / "libcurl.so.4"
    clang = Compiler(directory).program("clang")
    # Not by -Wl, which takes a comma in a path for its own
    options = (
        "-shared",
        "-nostdlib",
        "-Xlinker",
        f"--version-script={versions}",
        "-Xlinker",
        f"-soname={library.name}",
    )
    run(clang, *_linking(directory), *options, "-x", "c", "/dev/null", "-o", library, timeout=timeout)
    require_output(clang, library)
    wrapper = directory / "llvm-symbolizer"
    wrapper.write_text(_SYMBOLIZER)
    wrapper.chmod(0o755)


def _linking(directory: Path) -> tuple[str, ...]:
    return (f"--target={TARGET}", "-fuse-ld=lld", f"-B{directory}")


@dataclass(frozen=True)
class Compiler:
    """The installed programs."""

    directory: Path

    def program(self, name: str) -> Tool:
        """One of them, started in such a way that it finds its libraries."""
        path = self.directory / name
        return Tool(name, ("env", f"LD_LIBRARY_PATH={self.directory}", str(path)), (path,))

    def compile(self, sources: tuple[Path, ...], output: Path, root: Path, *, timeout: float) -> None:
        """Compile and link a fuzzer with AddressSanitizer against the unpacked sysroot `root`, with debug information.

        Neither the place of the sources, which must all be in one directory, nor that of anything else is in the
        outcome. Raises ToolError.
        """
        clang = self.program("clang")
        options = (
            "--driver-mode=g++", f"--sysroot={root}", f"-resource-dir={root / _RUNTIME}", *_linking(self.directory),
            "-std=gnu17", "-O1", "-gdwarf-4", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror",
            # The functions of a stack are those of the source: a deeper one is not hidden in a tail call
            "-fno-optimize-sibling-calls",
            "-fsanitize=fuzzer,address", "-shared-libasan",
            "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections,--build-id=sha1",
            f"-ffile-prefix-map={root}=", f"-fdebug-compilation-dir={SOURCES_SHOWN}",
        )  # fmt: skip
        # The sanitizer's tables name the sources as they are named here
        names, place = [source.name for source in sources], sources[0].parent
        # By itself clang puts libstdc++ before the sanitizer, which insists on being loaded first
        linked = ("-nostdlib++", "-x", "c", *names, "-lstdc++")
        run(clang, *options, *linked, "-o", output.absolute(), timeout=timeout, cwd=place)
        require_output(clang, output)

    def strip(self, program: Path, output: Path, *, timeout: float) -> None:
        """Copy a program without all that the guest does not need to run it. Raises ToolError."""
        objcopy = self.program("llvm-objcopy")
        run(objcopy, "--strip-all", program, output, timeout=timeout)
        require_output(objcopy, output)


SOURCES_SHOWN = "pipeline/demo/fuzzers"
"""How stacks name the directory of the sources, wherever it is."""


def unpack(sysroot: Path, directory: Path) -> Path:
    """Make `directory` and unpack the sysroot into it."""
    with tarfile.open(sysroot) as archive:
        archive.extractall(directory, filter="data")
    return directory
