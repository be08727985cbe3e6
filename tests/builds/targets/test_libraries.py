"""Libraries that targets load, out of Debian's packages."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.linux.apt import Apt
from pipeline.builds.linux.gathering import Provided
from pipeline.builds.linux.libraries import Selection
from pipeline.builds.targets import libraries
from pipeline.builds.targets.libraries import FoundLibraries, candidates, read
from pipeline.errors import PackageError, StoreError
from tests.builds.linux import debs
from tests.builds.linux.debs import LIB, Content, Link, elf

LONG = 30.0
GUESTS = ("libc.so.6",)

T = TypeVar("T")


class TestCandidates:
    @pytest.mark.parametrize(
        ("library", "package"),
        [
            ("libssl.so.3", "libssl3"),
            ("libssl.so.3", "libssl3t64"),
            ("libcrypto.so.3", "libssl3"),
            ("libcrypto.so.3", "libssl3t64"),
            ("libcrypto.so.1.1", "libssl1.1"),
            ("libz.so.1", "zlib1g"),
            ("libpng16.so.16", "libpng16-16"),
            ("libpng16.so.16", "libpng16-16t64"),
            ("libglib-2.0.so.0", "libglib2.0-0"),
            ("libglib-2.0.so.0", "libglib2.0-0t64"),
            ("libgobject-2.0.so.0", "libglib2.0-0"),
            ("libpcre2-8.so.0", "libpcre2-8-0"),
            ("libxml2.so.2", "libxml2"),
            ("libfoo_bar.so.2", "libfoo-bar2"),
            ("libX11.so.6", "libx11-6"),
            ("libbz2.so.1.0", "libbz2-1.0"),
            ("libboost_system.so.1.74.0", "libboost-system1.74.0"),
            ("libdb-5.3.so", "libdb5.3"),
            ("libdb-5.3.so", "libdb5.3t64"),
            ("libicuuc.so.72", "libicu72"),
            ("libicui18n.so.76", "libicu76"),
            ("libjpeg.so.62", "libjpeg62-turbo"),
            ("libLLVM.so.19.1", "libllvm19"),
            ("libstdc++.so.6", "libstdc++6"),
            ("libz3.so.4", "libz3-4"),
            ("libcurl.so.4", "libcurl4t64"),
        ],
    )
    def test_the_package_of_debian_is_among_them(self, library: str, package: str) -> None:
        assert package in candidates(library)

    def test_the_likeliest_is_first(self) -> None:
        assert candidates("libssl.so.3") == ["libssl3", "libssl3t64", "libssl-3", "libssl-3t64", "libssl", "libsslt64"]
        assert candidates("libz.so.1")[0] == "zlib1g"
        assert candidates("libxml2.so.2") == ["libxml2-2", "libxml2-2t64", "libxml2", "libxml2t64"]

    @pytest.mark.parametrize(
        "library",
        ["", "libc", "../../etc/passwd", "/lib/libz.so.1", "libz.so.1\n", "lib z.so.1", "$(id).so.1", "--now.so.1",
         "größe.so.1", "libz.so.1/..", "-.so", ".so", "l" * 100 + ".so.1"],
    )  # fmt: skip
    def test_a_name_that_no_package_can_be_named_after(self, library: str) -> None:
        assert candidates(library) == []

    @given(st.text(max_size=40) | st.from_regex(r"[a-zA-Z0-9_.+-]{1,30}\.so(\.[0-9a-zA-Z.]{0,9})?", fullmatch=True))
    def test_only_names_of_packages_come_out(self, library: str) -> None:
        found = candidates(library)
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name) for name in found)
        assert len(set(found)) == len(found) < 20


@dataclass
class Archive:
    """A directory of packages, and what is gathered from it."""

    root: Path
    names: list[str] = field(default_factory=list)

    def add(self, name: str, files: Mapping[str, Content], *depends: str) -> None:
        debs.write(self.debs, name, {f"usr/{LIB}/{file}": content for file, content in files.items()}, depends=depends)

    @property
    def debs(self) -> Path:
        return self.root / "debs"

    def gather(self, *names: str, packages: tuple[str, ...] = (), provided: bool = True) -> FoundLibraries:
        """Gather these libraries anew."""
        work = self.root / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        libraries.gather(
            names,
            packages,
            self.debs if provided else None,
            self.root / "apt",
            work / "list",
            work / "libraries",
            without=GUESTS,
            timeout=LONG,
        )
        found = read(work / "list")
        self.names = sorted(path.name for path in (work / "libraries").iterdir())
        assert self.names == sorted(found.found)
        return found

    def library(self, name: str) -> bytes:
        return (self.root / "work/libraries" / name).read_bytes()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive(tmp_path)
    made.add("zlib1g", {"libz.so.1": Link("libz.so.1.3"), "libz.so.1.3": elf("libc.so.6", text=b"zlib")}, "libc6")
    made.add("libc6", {"libc.so.6": elf(), "libm.so.6": elf("libc.so.6")})
    made.add("libpng16-16t64", {"libpng16.so.16": elf("libz.so.1", "libc.so.6")}, "zlib1g (>= 1)", "libc6")
    return made


class TestGather:
    def test_by_its_name_and_under_the_name_that_is_looked_for(self, archive: Archive) -> None:
        assert archive.gather("libz.so.1") == FoundLibraries({"libz.so.1": "zlib1g"}, ())
        assert archive.library("libz.so.1") == elf("libc.so.6", text=b"zlib")

    def test_with_what_it_loads_in_turn(self, archive: Archive) -> None:
        found = archive.gather("libpng16.so.16")
        assert found == FoundLibraries({"libpng16.so.16": "libpng16-16t64", "libz.so.1": "zlib1g"}, ())

    def test_by_what_a_found_package_depends_on(self, archive: Archive) -> None:
        archive.add("libtiff6", {"libtiff.so.6": elf("libodd.so.9")}, "libother", "strange-name (>= 2)", "libc6")
        archive.add("strange-name", {"libodd.so.9": elf()})
        archive.add("libother", {"libx.so": elf()})
        assert archive.gather("libtiff.so.6") == FoundLibraries(
            {"libodd.so.9": "strange-name", "libtiff.so.6": "libtiff6"}, ()
        )
        assert archive.gather("libodd.so.9") == FoundLibraries({}, ("libodd.so.9",))

    def test_of_its_dependencies_the_one_with_the_right_name_is_opened_first(self, archive: Archive) -> None:
        archive.add("libtiff6", {"libtiff.so.6": elf("libz.so.1")}, "libdamaged1", "zlib1g")
        (archive.debs / "libdamaged1_1_amd64.deb").write_bytes(b"no package")
        assert archive.gather("libtiff.so.6").missing == ()

    def test_by_a_package_that_the_user_names(self, archive: Archive) -> None:
        archive.add(
            "my-package", {"libmine.so.1": elf("libmine2.so"), "libmine2.so": elf(), "libz.so.1": elf(text=b"my")}
        )
        assert archive.gather("libmine.so.1").missing == ("libmine.so.1",)
        assert archive.gather("libmine.so.1", packages=("my-package",)).found == {
            "libmine.so.1": "my-package",
            "libmine2.so": "my-package",
        }
        assert archive.gather("libz.so.1", packages=("my-package",)).found == {"libz.so.1": "my-package"}
        assert archive.library("libz.so.1") == elf(text=b"my")

    def test_a_package_named_by_the_user_serves_what_libraries_load(self, archive: Archive) -> None:
        archive.add("libtiff6", {"libtiff.so.6": elf("libmine.so.1")})
        archive.add("my-package", {"libmine.so.1": elf()})
        assert archive.gather("libtiff.so.6", packages=("my-package",)).missing == ()

    def test_what_was_opened_for_a_later_one_has_an_earlier_one(self, archive: Archive) -> None:
        archive.add("libset5", {"libset.so.5": elf(), "liba.so.1": elf("libb.so.1"), "libb.so.1": elf()})
        found = archive.gather("liba.so.1", "libset.so.5", "libzz.so.1")
        assert found == FoundLibraries(
            dict.fromkeys(("liba.so.1", "libb.so.1", "libset.so.5"), "libset5"), ("libzz.so.1",)
        )

    def test_what_is_missing_does_not_keep_the_rest_away(self, archive: Archive) -> None:
        archive.add("libtiff6", {"libtiff.so.6": elf("libgone.so.1", "libz.so.1")})
        found = archive.gather("libtiff.so.6", "libnone.so.2", "../../x.so")
        assert found.missing == ("../../x.so", "libgone.so.1", "libnone.so.2")
        assert found.found == {"libtiff.so.6": "libtiff6", "libz.so.1": "zlib1g"}

    def test_a_package_of_that_name_without_the_library(self, archive: Archive) -> None:
        archive.add("libfoo2", {"libfoo.so.1": elf(), "libfoo.so.2": Link("libfoo.so.2.1")})
        archive.add("libfoo-2", {"libfoo.so.2": elf()})
        assert archive.gather("libfoo.so.2").found == {"libfoo.so.2": "libfoo-2"}

    def test_libraries_that_load_each_other(self, archive: Archive) -> None:
        archive.add("liba1", {"liba.so.1": elf("libb.so.1")}, "libb1")
        archive.add("libb1", {"libb.so.1": elf("liba.so.1")}, "liba1")
        assert archive.gather("libb.so.1").found == {"liba.so.1": "liba1", "libb.so.1": "libb1"}

    def test_what_the_guest_has_is_not_gathered(self, archive: Archive) -> None:
        assert archive.gather("libc.so.6") == FoundLibraries({}, ())

    def test_nothing_is_asked_for(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Apt, "of", None)  # apt is not run
        assert archive.gather(provided=False) == FoundLibraries({}, ())

    def test_the_newest_package_counts(self, archive: Archive) -> None:
        debs.write(archive.debs, "zlib1g", {f"{LIB}/libz.so.1": elf(text=b"new")}, version="10")
        archive.gather("libz.so.1")
        assert archive.library("libz.so.1") == elf(text=b"new")

    def test_a_damaged_package(self, archive: Archive) -> None:
        (archive.debs / "zlib1g_1_amd64.deb").write_bytes(b"no package")
        with pytest.raises(PackageError, match="zlib1g"):
            archive.gather("libz.so.1")

    def test_a_host_that_fails(self, archive: Archive, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match="collecting the libraries of targets: Not a directory"):
            libraries.gather([], [], None, tmp_path, tmp_path / "list", tmp_path / "file/x", without=(), timeout=LONG)


class TestByApt:
    def test_with_new_lists_all_is_fetched_anew(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Selection] = []

        class PlayedApt(Provided):
            """The first run ends in the middle, as with old lists."""

            failed = False

            def bring(self, names: list[str], directory: Path) -> list[Path]:  # type: ignore[override]
                if names == ["zlib1g"] and not self.failed:
                    self.failed = True
                    raise PackageError("apt could not fetch it", hint="")
                return super().bring(names, directory)

            def with_fresh_lists(self, action: Callable[[], T]) -> T:
                with pytest.raises(PackageError):
                    action()
                return action()

        @contextmanager
        def of(state: Path, cache: Path, selection: Selection, *, timeout: float) -> Iterator[PlayedApt]:
            asked.append(selection)
            yield PlayedApt(archive.debs)

        monkeypatch.setattr(Apt, "of", of)
        found = archive.gather("libpng16.so.16", packages=("my-package",), provided=False)
        assert found.found == {"libpng16.so.16": "libpng16-16t64", "libz.so.1": "zlib1g"}
        assert asked == [Selection((), {}, ("my-package", "libpng16-16"))]


class TestList:
    FROZEN = '{"schema": 1, "found": {"libz.so.1": "zlib1g"}, "missing": ["libx.so"]}'

    def test_a_frozen_sample(self, tmp_path: Path) -> None:
        value = FoundLibraries({"libz.so.1": "zlib1g"}, ("libx.so",))
        (tmp_path / "list").write_text(self.FROZEN)
        assert read(tmp_path / "list") == value
        assert value.encode() == json.loads(self.FROZEN)

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", '{"schema": 2, "found": {}, "missing": []}', FROZEN.replace('["libx.so"]', "1")]
    )
    def test_a_damaged_one(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "list").write_text(content)
        with pytest.raises(ValueError, match=r"."):
            read(tmp_path / "list")
