"""What is unpacked of the compiler's packages: small ones here. The real compiler is tested by what it makes."""

import tarfile
from pathlib import Path

import pytest

from pipeline.demo import compiler
from pipeline.demo.packages import Packages
from pipeline.errors import PackageError, ToolError
from tests.demo import debs
from tests.demo.debs import Content, Link

LONG = 30.0
TRIPLE = "x86_64-linux-gnu"
LLVM = "usr/lib/llvm-19"
RUNTIME = f"{LLVM}/lib/clang/19"
GCC = f"usr/lib/gcc/{TRIPLE}/12"

LIBRARIES = {
    "libbsd0": "libbsd.so.0", "libclang-cpp19": "libclang-cpp.so.19.1", "libedit2": "libedit.so.2",
    "libffi8": "libffi.so.8", "libllvm19": "libLLVM.so.19.1", "liblzma5": "liblzma.so.5", "libmd0": "libmd.so.0",
    "libtinfo6": "libtinfo.so.6", "libxml2": "libxml2.so.2", "libz3-4": "libz3.so.4", "libzstd1": "libzstd.so.1",
}  # fmt: skip
CONTENTS: dict[str, dict[str, Content]] = {
    "clang-19": {f"{LLVM}/bin/clang": b"#!/bin/sh\nexit 1\n", f"{LLVM}/bin/clang-19": Link("clang")},
    "lld-19": {f"{LLVM}/bin/lld": b"lld", f"{LLVM}/bin/wasm-ld": Link("lld")},
    "llvm-19": {f"{LLVM}/bin/{name}": b"x" for name in ("llvm-objcopy", "llvm-symbolizer", "opt")},
    **{name: {f"usr/lib/{TRIPLE}/{file}.7": name.encode()} for name, file in LIBRARIES.items()},
    "zlib1g": {f"lib/{TRIPLE}/libz.so.1": Link("libz.so.1.2"), f"lib/{TRIPLE}/libz.so.1.2": b"zlib"},
    "libicu72": {f"usr/lib/{TRIPLE}/libicu{name}.so.72.1": b"icu" for name in ("data", "uc", "io")},
    "libgcc-s1": {f"lib/{TRIPLE}/libgcc_s.so.1": b"gcc"},
    "libstdc++6": {f"usr/lib/{TRIPLE}/libstdc++.so.6": Link("x"), f"usr/lib/{TRIPLE}/libstdc++.so.6.0.30": b"c++"},
    "libc6": {f"lib/{TRIPLE}/libc.so.6": b"libc", f"lib/{TRIPLE}/ld-linux-x86-64.so.2": b"loader"},
    "libc6-dev": {
        "usr/include/stdio.h": b"stdio",
        f"usr/lib/{TRIPLE}/Scrt1.o": b"start",
        f"usr/lib/{TRIPLE}/libc.a": b"",
    },
    "libclang-common-19-dev": {f"{RUNTIME}/include/stddef.h": b"", f"{RUNTIME}/include/arm_neon.h": b""},
    "libclang-rt-19-dev": {
        f"{RUNTIME}/lib/linux/libclang_rt.{name}": b"rt" for name in ("asan-x86_64.so", "tsan-x86_64.a")
    },
    "libgcc-12-dev": {f"{GCC}/crtbeginS.o": b"", f"{GCC}/cc1": b"large"},
    "linux-libc-dev": {"usr/include/linux/limits.h": b"", "usr/include/drm/drm.h": b""},
}


def written(directory: Path, *, without: tuple[str, str] = ("", "")) -> Path:
    """All packages, without one file of one of them."""
    for name, files in CONTENTS.items():
        left = {path: data for path, data in files.items() if (name, path) != without}
        debs.write(directory, name, left or {"usr/share/doc/x": b"doc"})
    return directory


def installed(directory: Path, provided: Path) -> None:
    compiler.install(directory / "llvm", directory / "sysroot.tar", provided, timeout=LONG)


def test_the_packages_are_those_that_are_fetched() -> None:
    assert sorted(CONTENTS) == sorted(compiler.PACKAGES)


def test_what_is_kept_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provided = written(tmp_path / "debs")
    clang = b'#!/bin/sh\nfor last; do :; done\necho "made" >"$last"\n'
    debs.write(provided, "clang-19", {f"{LLVM}/bin/clang": clang})
    installed(tmp_path, provided)
    assert sorted(path.name for path in (tmp_path / "llvm").iterdir()) == sorted(
        ["clang", "ld.lld", "llvm-objcopy", "llvm-symbolizer", "llvm-symbolizer-19", "libcurl.so.4", "libz.so.1",
         "libicudata.so.72", "libicuuc.so.72", "libgcc_s.so.1", "libstdc++.so.6", *LIBRARIES.values()]
    )  # fmt: skip
    assert (tmp_path / "llvm/libz.so.1").read_bytes() == b"zlib"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["debs", "llvm", "sysroot.tar"]
    with tarfile.open(tmp_path / "sysroot.tar") as archive:
        assert sorted(archive.getnames()) == sorted(
            [f"lib/{TRIPLE}/libc.so.6", "lib64/ld-linux-x86-64.so.2", "usr/include/stdio.h",
             f"usr/lib/{TRIPLE}/Scrt1.o", f"{RUNTIME}/include/stddef.h",
             f"{RUNTIME}/lib/linux/libclang_rt.asan-x86_64.so", f"{GCC}/crtbeginS.o",
             f"lib/{TRIPLE}/libgcc_s.so.1", f"{GCC}/libstdc++.so", "usr/include/linux/limits.h"]
        )  # fmt: skip


@pytest.mark.parametrize(
    ("package", "path", "named"),
    [
        ("clang-19", f"{LLVM}/bin/clang", "clang-19 does not hold clang"),
        ("zlib1g", f"lib/{TRIPLE}/libz.so.1.2", "zlib1g does not hold libz.so.1"),
        ("libicu72", f"usr/lib/{TRIPLE}/libicudata.so.72.1", "libicu72 does not hold libicudata.so.72"),
        ("linux-libc-dev", "usr/include/linux/limits.h", "linux-libc-dev_1_amd64.deb does not hold usr/include/"),
    ],
)
def test_a_package_without_what_is_needed_is_named(tmp_path: Path, package: str, path: str, named: str) -> None:
    with pytest.raises(PackageError) as caught:
        installed(tmp_path, written(tmp_path / "debs", without=(package, path)))
    assert str(caught.value).startswith(named)
    assert caught.value.hint == "use the package of Debian 12"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["debs"]


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    provided = written(tmp_path / "debs")
    (provided / "lld-19_1_amd64.deb").unlink()
    with pytest.raises(PackageError, match=r"^1 packages of the demo guest are missing") as caught:
        installed(tmp_path, provided)
    assert caught.value.detail == "put lld-19_VERSION_amd64.deb of Debian there"


def test_a_compiler_that_does_not_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="clang failed with exit code 1"):
        installed(tmp_path, written(tmp_path / "debs"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["debs"]


def test_of_provided_packages_only_those_that_are_wanted_count(tmp_path: Path) -> None:
    debs.write_all(written(tmp_path))
    names = {path.name for path in Packages(tmp_path, compiler.PACKAGES).present()}
    assert "clang-19_1_amd64.deb" in names
    assert "busybox-static_1_amd64.deb" not in names
    assert "clang-19_1_amd64.deb" not in {path.name for path in Packages(tmp_path).present()}
