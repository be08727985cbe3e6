"""What is unpacked of the compiler's packages: small ones here. The real compiler is tested by what it makes."""

import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.builds.linux import compiler
from pipeline.builds.linux.compiler import unpack
from pipeline.errors import PackageError, ToolError
from pipeline.store.publish import replacing
from tests.builds.linux import debs
from tests.builds.linux.debs import Content, Link, elf

LONG = 30.0
TRIPLE = "x86_64-linux-gnu"
LLVM = "usr/lib/llvm-19"
RUNTIME = f"{LLVM}/lib/clang/19"

CLANG = b'#!/bin/sh\nfor last; do :; done\necho "made" >"$last"\n'


def contents(gcc: str, lib: str) -> dict[str, dict[str, Content]]:
    """All packages of a release by its gcc, with libraries in `lib`."""
    home = f"usr/lib/gcc/{TRIPLE}/{gcc}"
    asm = "usr/lib/linux/uapi/x86/asm" if lib.startswith("usr") else f"usr/include/{TRIPLE}/asm"
    return {
        "clang-19": {f"{LLVM}/bin/clang": CLANG, f"{LLVM}/bin/clang-19": Link("clang")},
        "lld-19": {f"{LLVM}/bin/lld": elf("libLLVM.so.19.1", "libc.so.6"), f"{LLVM}/bin/wasm-ld": Link("lld")},
        "llvm-19": {
            f"{LLVM}/bin/llvm-objcopy": elf("libLLVM.so.19.1"),
            f"{LLVM}/bin/llvm-symbolizer": elf("libLLVM.so.19.1", "libcurl.so.4"),
            f"{LLVM}/bin/opt": elf("libnot.so.1"),
        },
        "squashfs-tools": {"usr/bin/mksquashfs": elf("libc.so.6"), "usr/bin/unsquashfs": elf("libc.so.6")},
        "libllvm19": {f"{lib}/libLLVM.so.19.1": elf("libicuuc.so.99", "libstdc++.so.6", "libm.so.6")},
        "libicu99": {f"{lib}/libicu{name}.so.99": Link(f"libicu{name}.so.99.1") for name in ("uc", "io")}
        | {f"{lib}/libicu{name}.so.99.1": b"icu" for name in ("uc", "io")},
        "libgcc-s1": {f"{lib}/libgcc_s.so.1": b"gcc"},
        "libstdc++6": {f"{lib}/libstdc++.so.6": Link("libstdc++.so.6.0.30"), f"{lib}/libstdc++.so.6.0.30": b"c++"},
        "libc6": {
            f"{lib}/{name}": name.encode() for name in ("libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "libdl.so.2")
        },
        "libc6-dev": {
            "usr/include/stdio.h": b"stdio",
            f"usr/lib/{TRIPLE}/Scrt1.o": b"start",
            f"usr/lib/{TRIPLE}/libc.a": b"",
            f"usr/lib/{TRIPLE}/libpthread.a": b"",
        },
        "libclang-common-19-dev": {f"{RUNTIME}/include/stddef.h": b"", f"{RUNTIME}/include/immintrin.h": b""},
        "libclang-rt-19-dev": {
            f"{RUNTIME}/lib/linux/libclang_rt.{name}": b"rt"
            for name in ("asan-x86_64.a", "asan-x86_64.a.syms", "asan-x86_64.so", "tsan-x86_64.a")
        },
        f"libgcc-{gcc}-dev": {f"{home}/crtbeginS.o": b"", f"{home}/cc1": b"large"},
        "linux-libc-dev": {"usr/include/linux/limits.h": b"", f"{asm}/errno.h": b"", "usr/share/doc/x": b""},
        f"libstdc++-{gcc}-dev": {f"usr/include/c++/{gcc}/vector": b"", f"{home}/libstdc++.a": b"large"},
    }


CONTENTS = contents("12", f"lib/{TRIPLE}")
DEPENDS = {
    "lld-19": ["libllvm19", "libc6"],
    "llvm-19": ["libllvm19", "libcurl4"],
    "libllvm19": ["libc6", "libicu99", "libstdc++6"],
}


def written(
    directory: Path, packages: Mapping[str, dict[str, Content]] = CONTENTS, *, without: tuple[str, str] = ("", "")
) -> Path:
    """All packages, without one file of one of them."""
    for name, files in packages.items():
        left = {path: data for path, data in files.items() if (name, path) != without}
        debs.write(directory, name, left or {"usr/share/doc/x": b"doc"}, depends=DEPENDS.get(name, []))
    return directory


def installed(directory: Path, provided: Path) -> None:
    with replacing((directory / "sysroot.tar", directory / "llvm")) as (sysroot, programs):
        compiler.install(programs, sysroot, provided, directory / "apt", timeout=LONG)


@pytest.mark.parametrize(("gcc", "lib"), [("12", f"lib/{TRIPLE}"), ("14", f"usr/lib/{TRIPLE}")], ids=["12", "13"])
def test_what_is_kept_of_them_in_each_debian(tmp_path: Path, gcc: str, lib: str) -> None:
    installed(tmp_path, written(tmp_path / "debs", contents(gcc, lib)))
    assert sorted(path.name for path in (tmp_path / "llvm").iterdir()) == sorted(
        ["clang", "ld.lld", "llvm-objcopy", "mksquashfs", "llvm-symbolizer", "llvm-symbolizer-19", "libcurl.so.4",
         "libLLVM.so.19.1", "libicuuc.so.99", "libstdc++.so.6"]
    )  # fmt: skip
    assert (tmp_path / "llvm/libstdc++.so.6").read_bytes() == b"c++"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["debs", "llvm", "sysroot.tar"]
    root = unpack(tmp_path / "sysroot.tar", tmp_path / "root")
    # The names by which libm.so, a linker script, and headers ask for them
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == sorted(
        [f"lib/{TRIPLE}/libc.so.6", f"lib/{TRIPLE}/libm.so.6", "lib64/ld-linux-x86-64.so.2", "usr/include/stdio.h",
         f"usr/lib/{TRIPLE}/Scrt1.o", f"usr/lib/{TRIPLE}/libpthread.a", f"{RUNTIME}/include/stddef.h",
         f"{RUNTIME}/include/immintrin.h", f"{RUNTIME}/lib/linux/libclang_rt.asan-x86_64.a",
         f"{RUNTIME}/lib/linux/libclang_rt.asan-x86_64.a.syms", f"usr/include/c++/{gcc}/vector",
         f"usr/lib/gcc/{TRIPLE}/{gcc}/crtbeginS.o",
         f"usr/lib/{TRIPLE}/libgcc_s.so.1", f"usr/lib/{TRIPLE}/libstdc++.so", "usr/include/linux/limits.h",
         f"usr/include/{TRIPLE}/asm/errno.h"]
    )  # fmt: skip
    assert (root / "lib64/ld-linux-x86-64.so.2").read_bytes() == b"ld-linux-x86-64.so.2"
    assert (root / f"lib/{TRIPLE}/libc.so.6").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_nothing_of_a_sysroot_gets_outside(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "sysroot.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(PackageError, match="does not belong into"):
        unpack(tmp_path / "sysroot.tar", tmp_path / "root")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["sysroot.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_sysroot_has_nothing_but_files(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "sysroot.tar", "w") as archive:
        archive.addfile(member)
    with pytest.raises(PackageError, match="x does not belong into"):
        unpack(tmp_path / "sysroot.tar", tmp_path / "root")


@pytest.mark.parametrize(
    ("package", "path", "named"),
    [
        ("clang-19", f"{LLVM}/bin/clang", "clang-19 does not hold clang"),
        (
            "libstdc++-12-dev",
            "usr/include/c++/12/vector",
            "libstdc++-12-dev_1_amd64.deb does not",
        ),
        ("libicu99", f"lib/{TRIPLE}/libicuuc.so.99.1", "1 packages of the Linux guest are missing in "),
    ],
)
def test_a_package_without_what_is_needed_is_named(tmp_path: Path, package: str, path: str, named: str) -> None:
    with pytest.raises(PackageError) as caught:
        installed(tmp_path, written(tmp_path / "debs", without=(package, path)))
    assert str(caught.value).startswith(named)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["debs"]


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    provided = written(tmp_path / "debs")
    (provided / "lld-19_1_amd64.deb").unlink()
    with pytest.raises(PackageError, match=r"^1 packages of the Linux guest are missing") as caught:
        installed(tmp_path, provided)
    assert caught.value.detail == "put lld-19_VERSION_amd64.deb of Debian there"


def test_a_compiler_that_does_not_run_leaves_nothing(tmp_path: Path) -> None:
    provided = written(tmp_path / "debs")
    debs.write(provided, "clang-19", {f"{LLVM}/bin/clang": b"#!/bin/sh\nexit 1\n"})
    with pytest.raises(ToolError, match="clang failed with exit code 1"):
        installed(tmp_path, provided)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["debs"]
