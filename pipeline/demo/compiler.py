"""The compiler of the demo guest's fuzzers: Debian's clang, fetched as packages and run from the store, without root.

It is never the host's. So the fuzzers are the same bytes on every host, they fit the guest's libc, which is of the
same Debian release, and no package of the host can be missing. What is kept of 90 MB of packages is a directory with
the programs and the libraries that they load, and the `sysroot` that fuzzers are compiled against, as one tar file.
"""

import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.demo import libraries
from pipeline.demo.gathering import gather
from pipeline.demo.libraries import Selection
from pipeline.demo.packages import Packages, content, members, opened
from pipeline.errors import PackageError, ToolFailed
from pipeline.faults import host_faults
from pipeline.tools import Tool, require_output, run

TARGET = libraries.TARGET
_LLVM = "usr/lib/llvm-19"  # with build ids in stacks, which clang 14 does not print yet; in Debian 12 and 13
_RUNTIME = f"{_LLVM}/lib/clang/19"
_GCC = rf"usr/lib/gcc/{TARGET}/\d+"
_LIB = f"usr/lib/{TARGET}"

_PROGRAMS = {
    "clang-19": {f"{_LLVM}/bin/clang": "clang"},
    "lld-19": {f"{_LLVM}/bin/lld": "ld.lld"},
    "llvm-19": {f"{_LLVM}/bin/llvm-objcopy": "llvm-objcopy", f"{_LLVM}/bin/llvm-symbolizer": "llvm-symbolizer-19"},
}
_SYSROOT = {
    "libc6": rf"{_LIB}/(libc|libm|libmvec|ld-linux-x86-64)\.so\.\d",
    "libc6-dev": rf"usr/include/.*\.h|{_LIB}/(Scrt1\.o|crt[in]\.o|lib(c|m)\.so|libc_nonshared\.a)",
    "libclang-common-19-dev": rf"{_RUNTIME}/include/(__)?(std|limits|float)\w*\.h",
    "libclang-rt-19-dev": rf"{_RUNTIME}/lib/linux/libclang_rt\.(asan|asan_static|asan-preinit|fuzzer)-x86_64\.(a|so)",
    # Without crtbegin.o clang does not take the directory for one of gcc
    "libgcc-[0-9]*-dev": rf"{_GCC}/(crt(begin|end)S?\.o|libgcc\.a|libgcc_s\.so)",
    "libgcc-s1": rf"{_LIB}/libgcc_s\.so\.1",
    "libstdc++6": rf"{_LIB}/libstdc\+\+\.so\.6\.[\d.]+",
    "linux-libc-dev": rf"usr/include/(linux/\w+|asm-generic/\S+|{TARGET}/asm/\S+)\.h|usr/lib/linux/uapi/x86/asm/\S+\.h",
}
_LOADER = "lib64/ld-linux-x86-64.so.2"
_CXX = f"{_LIB}/libstdc++.so"
_RENAMED = {
    rf"{_LIB}/ld-linux-x86-64\.so\.2": _LOADER,
    rf"{_LIB}/(lib(?:c|m|mvec)\.so\.\d)": rf"lib/{TARGET}/\1",
    rf"{_LIB}/libstdc\+\+\.so\.6\.[\d.]+": _CXX,
    r"usr/lib/linux/uapi/x86/asm/(\S+)": rf"usr/include/{TARGET}/asm/\1",
}
"""Where linker scripts, the linker and headers look for what is a link in Debian's packages, or in a merged /usr."""

_LIBC = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2")
_CURL = "libcurl.so.4"
COMPILER = Selection(
    packages=tuple(_SYSROOT),
    programs=_PROGRAMS,
    libraries=("libgcc-s1", "libstdc++6"),
    # libc is the host's; of libcurl see below
    without=frozenset((*_LIBC, _CURL)),
)
"""What is fetched, beside the libraries that the programs load."""

SANITIZER = f"{_RUNTIME}/lib/linux/libclang_rt.asan-x86_64.so"
RUNTIME = {SANITIZER: "libclang_rt.asan-x86_64.so", _CXX: "libstdc++.so.6"}
"""What fuzzers load that the guest has not: files of the sysroot, and their names for the loader.

Linked into each fuzzer instead, they would make it five times as large.
"""

_SYMBOLIZER = """\
#!/bin/sh
exec 3<"${0%/*}" && LD_LIBRARY_PATH=/proc/self/fd/3 exec /proc/self/fd/3/llvm-symbolizer-19 "$@"
"""
_PROGRAM, _WORK, _OUTPUT = (PurePosixPath("/proc/self/fd", str(number)) for number in (3, 4, 5))
_START = """\
exec 3<"$1" 4<"$2" 5<"$3" && program=$0 && shift 3 && \
LD_LIBRARY_PATH=/proc/self/fd/3 TMPDIR=/proc/self/fd/5 exec "/proc/self/fd/3/$program" "$@"\
"""
"""How a program is started with its own directory and two others under plain names, which it hands on to its children.

LLVM fills in each % of a file's name that it writes, the loader splits paths at colons and semicolons, and options take
what is behind an equals sign or a comma for something else.
"""
_LINKING = ("-fuse-ld=lld", f"-B{_PROGRAM}")
_SYSTEM = (f"--target={TARGET}", f"--sysroot={_WORK}", f"-resource-dir={_WORK / _RUNTIME}")

# llvm-symbolizer would fetch debug information from servers by libcurl, which drags in 30 more packages. It never calls
# it for files that are there, and to start it needs no more than a library of this name with this version.
_NO_CURL = "CURL_OPENSSL_4 { *; };\n"


def install(directory: Path, sysroot: Path, provided: Path | None, state: Path, *, timeout: float) -> None:
    """Make the directory with all programs, and the tar file `sysroot`, of packages, which then lie beside them.

    `provided`: a directory that has the packages; without, apt fetches them, and keeps its lists in `state`. Raises
    StoreError, ToolMissing, PackageError or another ToolError.
    """
    with host_faults("installing the compiler"):
        packages, found = gather(directory.parent / "packages", COMPILER, provided, state, timeout=timeout)
        directory.mkdir()
        for name, path in {**found.programs(), **found.loaded()}.items():
            path.rename(directory / name)
        _write_sysroot(packages, sysroot)
        _make_symbolizer(directory, directory.parent, timeout)


def _write_sysroot(packages: Packages, sysroot: Path) -> None:
    with tarfile.open(sysroot, "w") as archive:
        for package, pattern in _SYSROOT.items():
            for name, data in sorted(_matching(packages.find(package), re.compile(pattern)).items()):
                renamed = (re.sub(old, new, name) for old, new in _RENAMED.items() if re.fullmatch(old, name))
                _add(archive, next(renamed, name), data)


def _matching(package: Path, names: re.Pattern[str]) -> dict[str, bytes]:
    with opened(package) as archive:
        files = ((name, member) for name, member in members(archive) if member.isfile() and names.fullmatch(name))
        found = {name: content(archive, member) for name, member in files}
    if not found:
        raise PackageError(f"{package.name} does not hold {names.pattern}", hint="use the packages of Debian 12 or 13")
    return found


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o755 if ".so" in name else 0o644
    archive.addfile(member, io.BytesIO(data))


def _make_symbolizer(directory: Path, work: Path, timeout: float) -> None:
    versions = work / "libcurl.versions"
    versions.write_text(_NO_CURL)
    library = directory / _CURL
    clang = Compiler(directory).program("clang", work, directory)
    options = ("-shared", "-nostdlib", f"-Wl,--version-script={_WORK / versions.name},-soname={library.name}")
    run(clang, *_LINKING, *options, "-x", "c", "/dev/null", "-o", _OUTPUT / library.name, timeout=timeout)
    require_output(clang, library)
    wrapper = directory / "llvm-symbolizer"
    wrapper.write_text(_SYMBOLIZER)
    wrapper.chmod(0o755)


@dataclass(frozen=True)
class Compiler:
    """The installed programs."""

    directory: Path

    def program(self, name: str, work: Path, output: Path) -> Tool:
        """One of them, started in such a way that it finds its libraries, and two directories under plain names.

        The one for its output is also where its temporary files go.
        """
        places = (str(place.absolute()) for place in (self.directory, work, output))
        return Tool(name, ("sh", "-c", _START, name, *places), (self.directory / name,))

    def compile(self, sources: tuple[Path, ...], output: Path, root: Path, *, timeout: float) -> None:
        """Compile and link a fuzzer with AddressSanitizer against the unpacked sysroot `root`, with debug information.

        Neither the place of the sources, which must all be in one directory, nor that of anything else is in the
        outcome. Raises ToolError.
        """
        clang = self.program("clang", root, output.parent)
        options = (
            "--driver-mode=g++", *_SYSTEM, *_LINKING,
            "-std=gnu17", "-O1", "-gdwarf-4", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror",
            # The functions of a stack are those of the source: a deeper one is not hidden in a tail call
            "-fno-optimize-sibling-calls",
            "-fsanitize=fuzzer,address", "-shared-libasan",
            "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections,--build-id=sha1",
            f"-ffile-prefix-map={_WORK}=", f"-fdebug-compilation-dir={SOURCES_SHOWN}",
        )  # fmt: skip
        # The sanitizer's tables name the sources as they are named here
        names, place = [source.name for source in sources], sources[0].parent
        # By itself clang puts libstdc++ before the sanitizer, which insists on being loaded first
        linked = ("-nostdlib++", "-x", "c", *names, "-lstdc++")
        run(clang, *options, *linked, "-o", _OUTPUT / output.name, timeout=timeout, cwd=place)
        require_output(clang, output)

    def dependencies(self, source: Path, rule: Path, root: Path, *, timeout: float) -> str:
        """What a source includes from outside the sysroot, whether it is there or not: a rule of make.

        It is written to the file `rule` first. What is wrong with the source is no error here. Raises ToolError.
        """
        clang = self.program("clang", root, rule.parent)
        # All that macros may depend on is as for `compile`
        options = ("--driver-mode=g++", *_SYSTEM, "-std=gnu17", "-O1", "-fsanitize=fuzzer,address", "-x", "c")
        asked = ("-MM", "-MG", "-MF", _OUTPUT / rule.name, source.name)
        try:
            run(clang, *options, *asked, timeout=timeout, cwd=source.parent)
        except ToolFailed as error:
            if error.code != WRONG_SOURCE:
                raise
        require_output(clang, rule)
        return rule.read_text(errors="surrogateescape")

    def strip(self, program: Path, output: Path, *, timeout: float) -> None:
        """Copy a program without all that the guest does not need to run it. Raises ToolError."""
        objcopy = self.program("llvm-objcopy", program.parent, output.parent)
        run(objcopy, "--strip-all", _WORK / program.name, _OUTPUT / output.name, timeout=timeout)
        require_output(objcopy, output)


WRONG_SOURCE = 1
"""clang's exit code for what is wrong with a source. Any other one is its own fault, or the host's."""

SOURCES_SHOWN = "pipeline/demo/fuzzers"
"""How stacks name the directory of the sources, wherever it is."""


def unpack(sysroot: Path, directory: Path) -> Path:
    """Make `directory` and unpack the sysroot into it: regular files, none of them outside. Raises PackageError."""
    with tarfile.open(sysroot) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            # By hand: tarfile has filters only from Python 3.11.4 on, and Debian 12 has 3.11.2
            if not member.isfile() or name.is_absolute() or ".." in name.parts:
                raise PackageError(
                    f"{name} does not belong into {sysroot}", hint="make it anew: topcoat force DemoCompiler"
                )
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(archive, member))
            path.chmod(member.mode & 0o755)
    return directory
