"""The compiler for fuzz targets: Debian's clang, fetched as packages and run from the store, without root.

The host's own compiler is never used. So targets are the same bytes on every host, they fit the guest's libc, which
is of the same Debian release, and no package of the host can be missing. Of 100 MB of packages two things are kept: a
directory with the programs and the libraries that they load, and, as one tar file, the `sysroot` that targets are
compiled against. With the programs comes mksquashfs, which makes file systems of what was compiled.
"""

import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from pipeline.builds.linux import libraries
from pipeline.builds.linux.gathering import gather
from pipeline.builds.linux.libraries import Selection
from pipeline.builds.linux.packages import Packages, content, members, opened
from pipeline.errors import PackageError, ToolFailed
from pipeline.host.faults import host_faults
from pipeline.host.tools import Tool, require_output, run

TARGET = libraries.TARGET
_LLVM = "usr/lib/llvm-19"  # prints build ids in stacks, unlike clang 14; in Debian 12 and 13
_RUNTIME = f"{_LLVM}/lib/clang/19"
_GCC = rf"usr/lib/gcc/{TARGET}/\d+"
_LIB = f"usr/lib/{TARGET}"

_PROGRAMS = {
    "clang-19": {f"{_LLVM}/bin/clang": "clang"},
    "lld-19": {f"{_LLVM}/bin/lld": "ld.lld"},
    "llvm-19": {f"{_LLVM}/bin/llvm-objcopy": "llvm-objcopy", f"{_LLVM}/bin/llvm-symbolizer": "llvm-symbolizer-19"},
    "squashfs-tools": {"usr/bin/mksquashfs": "mksquashfs"},
}
_RUNTIMES = "asan|asan_cxx|asan_static|asan-preinit|fuzzer|fuzzer_interceptors|msan|msan_cxx|profile|ubsan_standalone"
_SYSROOT = {
    "libc6": rf"{_LIB}/(libc|libm|libmvec|libresolv|ld-linux-x86-64)\.so\.\d",
    "libc6-dev": rf"usr/include/.*\.h|{_LIB}/(Scrt1\.o|crt[in]\.o|lib(c|m)\.so|lib(c_nonshared|pthread|dl|rt|util)\.a)",
    "libclang-common-19-dev": rf"{_RUNTIME}/include/.*\.h",
    "libclang-rt-19-dev": rf"{_RUNTIME}/lib/linux/libclang_rt\.({_RUNTIMES}|ubsan_standalone_cxx)-x86_64\.a(\.syms)?",
    # clang recognises the directory of gcc by crtbegin.o
    "libgcc-[0-9]*-dev": rf"{_GCC}/(crt(begin|end)S?\.o|libgcc\.a|libgcc_s\.so)",
    "libgcc-s1": rf"{_LIB}/libgcc_s\.so\.1",
    "libstdc++6": rf"{_LIB}/libstdc\+\+\.so\.6\.[\d.]+",
    "libstdc++-[0-9]*-dev": rf"usr/include/(c\+\+|{TARGET}/c\+\+)/.*",
    "linux-libc-dev": r"usr/include/.*\.h|usr/lib/linux/uapi/x86/asm/\S+\.h",
}
_LOADER = "lib64/ld-linux-x86-64.so.2"
_RENAMED = {
    rf"{_LIB}/ld-linux-x86-64\.so\.2": _LOADER,
    rf"{_LIB}/(lib(?:c|m|mvec)\.so\.\d)": rf"lib/{TARGET}/\1",
    rf"{_LIB}/libstdc\+\+\.so\.6\.[\d.]+": f"{_LIB}/libstdc++.so",
    rf"{_LIB}/libresolv\.so\.\d": f"{_LIB}/libresolv.so",
    r"usr/lib/linux/uapi/x86/asm/(\S+)": rf"usr/include/{TARGET}/asm/\1",
}
"""Files that get another name in the sysroot: the one by which they are looked for, which in Debian is a link."""

_LIBC = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2")
_CURL = "libcurl.so.4"
COMPILER = Selection(
    packages=tuple(_SYSROOT),
    programs=_PROGRAMS,
    libraries=("libgcc-s1", "libstdc++6"),
    # libc is the host's; for libcurl see _NO_CURL
    without=frozenset((*_LIBC, _CURL)),
)
"""The packages that are fetched, besides those of the libraries that the programs load."""

_SYMBOLIZER = """\
#!/bin/sh
exec 3<"${0%/*}" && LD_LIBRARY_PATH=/proc/self/fd/3 exec /proc/self/fd/3/llvm-symbolizer-19 "$@"
"""
_PROGRAM, _WORK, _OUTPUT = (PurePosixPath("/proc/self/fd", str(number)) for number in (3, 4, 5))
_START = """\
exec 3<"$1" 4<"$2" 5<"$3" && program=$0 && shift 3 && \
LD_LIBRARY_PATH=/proc/self/fd/3 TMPDIR=/proc/self/fd/5 exec "/proc/self/fd/3/$program" "$@"\
"""
"""The shell script that starts a program with plain names for its own directory and two others, as open descriptors.

LLVM fills in each % of a file's name that it writes, the loader splits paths at colons and semicolons, and options take
what follows an equals sign or a comma for something else.
"""
_LINKING = ("-fuse-ld=lld", f"-B{_PROGRAM}")
_SYSTEM = (f"--target={TARGET}", f"--sysroot={_WORK}", f"-resource-dir={_WORK / _RUNTIME}")

# llvm-symbolizer fetches debug information from servers by libcurl, which needs 30 more packages. For files that are
# there it never calls libcurl, and to start it needs only a library of this name with this version.
_NO_CURL = "CURL_OPENSSL_4 { *; };\n"


def install(directory: Path, sysroot: Path, provided: Path | None, state: Path, *, timeout: float) -> None:
    """Make `directory` with all programs, and the tar file `sysroot`, from packages, which are kept beside them.

    `provided` is a directory that has the packages; without it apt fetches them, and keeps its lists in `state`.
    `timeout` is in seconds, for each run of apt or the compiler. Raises StoreError, ToolMissing, PackageError or
    another ToolError.
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
    """The programs that `install` has put into a directory."""

    directory: Path

    def program(self, name: str, work: Path, output: Path) -> Tool:
        """One of the programs, which gets plain names for the directories `work` and `output`, and finds its libraries.

        Its temporary files go into `output` too.
        """
        places = (str(place.absolute()) for place in (self.directory, work, output))
        return Tool(name, ("sh", "-c", _START, name, *places), (self.directory / name,))

    def clang(self, *words: str | PurePath, directory: Path, output: Path, root: Path, timeout: float) -> None:
        """Run clang with these words in `directory`, against the unpacked sysroot `root`, to make the file `output`.

        No path of the host gets into the outcome, but for those that the words have. `timeout` is in seconds. Raises
        ToolError.
        """
        clang = self.program("clang", root, output.parent)
        named = (f"-ffile-prefix-map={_WORK}=", "-fdebug-compilation-dir=.")
        run(clang, *_SYSTEM, *named, *words, timeout=timeout, cwd=directory)
        require_output(clang, output)

    def link(self, *words: str | PurePath, directory: Path, output: Path, root: Path, timeout: float) -> None:
        """Make a program for the guest: as `clang`, which compiles and links the sources among the words."""
        linked = (*_LINKING, "-o", _OUTPUT / output.name)
        self.clang(*linked, *words, directory=directory, output=output, root=root, timeout=timeout)

    def dependencies(self, *words: str, directory: Path, rule: Path, root: Path, timeout: float) -> str:
        """The rule of make that names all that a source includes from outside the sysroot, whether it exists or not.

        `words` are the source, and all words that macros may depend on. The rule is written to the file `rule` first.
        Errors in the source are none here; if it is not there, the rule is empty. `timeout` is in seconds. Raises
        ToolError.
        """
        asked = ("-MM", "-MG", "-MF", _OUTPUT / rule.name)
        try:
            self.clang(*words, *asked, directory=directory, output=rule, root=root, timeout=timeout)
        except ToolFailed as error:
            if error.code != WRONG_SOURCE:
                raise
        return rule.read_text(errors="surrogateescape") if rule.exists() else ""

    def strip_debug(self, program: Path, output: Path, *, timeout: float) -> None:
        """Copy a program or library without its debug information. Raises ToolError."""
        objcopy = self.program("llvm-objcopy", program.parent, output.parent)
        run(objcopy, "--strip-debug", _WORK / program.name, _OUTPUT / output.name, timeout=timeout)
        require_output(objcopy, output)

    def squash(self, directory: Path, image: Path, *, timeout: float) -> None:
        """Make the squashfs file system `image` of a directory: the same bytes for the same files, all of them root's.

        LZ4, as an emulated guest unpacks that fastest, at the cost of a few bytes. Raises ToolError.
        """
        squashfs = self.program("mksquashfs", directory, image.parent)
        steady = ("-comp", "lz4", "-all-root", "-mkfs-time", "0", "-all-time", "0", "-no-xattrs", "-noappend")
        small = ("-mem", "256M", "-no-progress", "-quiet")
        run(squashfs, f"{_WORK}/.", _OUTPUT / image.name, *steady, *small, timeout=timeout)
        require_output(squashfs, image)


WRONG_SOURCE = 1
"""The exit code of clang for an error in a source. Any other one is its own fault, or the host's."""


def unpack(sysroot: Path, directory: Path) -> Path:
    """Make `directory` and unpack the sysroot into it: only regular files, none outside of it. Raises PackageError."""
    with tarfile.open(sysroot) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            # Checked by hand: tarfile has filters only since Python 3.11.4, and Debian 12 has 3.11.2
            if not member.isfile() or name.is_absolute() or ".." in name.parts:
                raise PackageError(
                    f"{name} does not belong into {sysroot}", hint="make it anew: topcoat force DemoCompiler"
                )
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(archive, member))
            path.chmod(member.mode & 0o755)
    return directory
