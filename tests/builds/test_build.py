import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.builds import demo
from pipeline.builds.build import Build, Resource, choose, load
from pipeline.builds.targets.places import TargetsPlaces
from pipeline.errors import MissingResource, SettingsError
from pipeline.fuzz.targets import FuzzTargets
from pipeline.host.tools import Tool
from pipeline.settings import (
    BootSettings,
    BuildKind,
    CampaignSettings,
    NamedTargets,
    PoolSettings,
    QemuSettings,
    Settings,
    Store,
    ToolSettings,
)
from pipeline.store.digests import digest

BUNDLE = {
    "zbi": "target/x64/fuchsia.zbi",
    "blk": "target/x64/fvm.blk",
    "kernel": "target/x64/multiboot.bin",
    "fvm": "build/out/default.zircon/tools/fvm",
    "zbitool": "build/out/default.zircon/tools/zbi",
    "qemu": "qemu-for-fuchsia/bin/qemu-system-x86_64",
    "llvm-symbolizer": "build/buildtools/linux-x64/clang/bin/llvm-symbolizer",
    "symbolizer": "build/zircon/prebuilt/downloads/symbolize/linux-x64/symbolize",
    "tests.json": "build/out/default/tests.json",
    "fuzzers.json": "build/out/default/fuzzers.json",
    "ffx": "ffx",
}
# B: build directory, P: prebuilt/third_party, CPU: the host's, QEMU: the target's CPU as QEMU calls it
CHECKOUT = {
    "zbi": "B/obj/build/images/fuchsia/fuchsia/fuchsia.zbi",
    "blk": "B/obj/build/images/fuchsia/fuchsia/fvm.blk",
    "kernel": "B/KERNEL",
    "fvm": "B/host_CPU/fvm",
    "zbitool": "B/host_CPU/zbi",
    "qemu": "P/qemu/linux-CPU/bin/qemu-system-QEMU",
    "llvm-symbolizer": "P/clang/linux-CPU/bin/llvm-symbolizer",
    "symbolizer": "B/host_CPU/symbolize",
    "tests.json": "B/tests.json",
    "fuzzers.json": "B/fuzzers.json",
    "ffx": "B/host_CPU/ffx-of-the-list",
}


def settings(
    root: Path,
    kind: BuildKind = "auto",
    resources: Mapping[str, Path] | None = None,
    targets: NamedTargets | None = None,
) -> Settings:
    return Settings(
        Store(root / "out"),
        kind,
        targets,
        resources or {},
        ToolSettings(),
        QemuSettings(),
        BootSettings(),
        PoolSettings(),
        CampaignSettings(),
        None,
    )


def checkout(root: Path, config: str | None = "FUCHSIA_ARCH='x64'\n", pointer: str = "out/default\n") -> Build:
    """A configured checkout in `root`, loaded."""
    root.mkdir(exist_ok=True)
    (root / ".fx-build-dir").write_text(pointer)
    out = root / pointer.strip()
    out.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (out / "fx.config").write_text(config)
    return load(settings(root), {"FUCHSIA_DIR": str(root)})


def paths(build: Build) -> dict[str, Path]:
    return {key: build.path(key) for key in build.resources if key != "qemu-img"}


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, "demo"),
        ({"FUCHSIA_DIR": "/f"}, "local"),
        ({"FUCHSIA_DIR": ""}, "demo"),
        ({"FUCHSIA_RESOURCES_DIR": "/r"}, "clusterfuzz"),
        ({"FUCHSIA_RESOURCES_DIR": ""}, "clusterfuzz"),
        ({"FUCHSIA_RESOURCES_DIR": "/r", "FUCHSIA_DIR": "/f"}, "clusterfuzz"),
        ({"FUCHSIA_RESOURCES_DIR": "", "FUCHSIA_DIR": "/f"}, "clusterfuzz"),
    ],
    ids=["none", "dir", "empty dir", "resources", "empty resources", "both", "empty resources and dir"],
)
@pytest.mark.parametrize("wanted", ["auto", "local", "clusterfuzz", "demo"])
def test_the_setting_chooses_and_else_the_environment(
    tmp_path: Path, environ: dict[str, str], kind: str, wanted: BuildKind
) -> None:
    chosen, why = choose(settings(tmp_path, wanted), environ)
    if wanted == "auto":
        assert chosen == kind
        assert [name for name in ("FUCHSIA_RESOURCES_DIR", "FUCHSIA_DIR") if name in why]
    else:
        assert (chosen, why) == (wanted, f"[build] kind = {wanted}")


FUCHSIA = {"FUCHSIA_RESOURCES_DIR": "/r", "FUCHSIA_DIR": "/f"}


@pytest.mark.parametrize("said", ["TOPCOAT_TARGETS", "[build] targets"])
@pytest.mark.parametrize("environ", [{}, FUCHSIA])
def test_named_targets_choose_before_the_environment_of_fuchsia(
    tmp_path: Path, environ: dict[str, str], said: str
) -> None:
    named = NamedTargets(tmp_path / "fuzz", said)
    assert choose(settings(tmp_path, targets=named), environ) == ("linux", f"{said} names targets")
    build = load(settings(tmp_path, targets=named), environ)
    assert (build.kind, build.name, build.why) == ("linux", "linux-fuzz", f"{said} names targets")
    for kind in ("local", "clusterfuzz", "linux", "demo"):
        assert choose(settings(tmp_path, kind, targets=named), environ) == (kind, f"[build] kind = {kind}")


def linux(directory: Path, kind: BuildKind = "auto") -> Build:
    """The build for the targets in this directory."""
    return load(settings(directory.parent, kind, targets=NamedTargets(directory, "TOPCOAT_TARGETS")), FUCHSIA)


def test_a_linux_build_is_the_demos_guest_with_targets_of_the_user(tmp_path: Path) -> None:
    build, ours = linux(tmp_path / "fuzz"), load(settings(tmp_path), {})
    store = Store(tmp_path / "out")
    assert build.targets == TargetsPlaces("fuzz", tmp_path / "fuzz", store, "linux-fuzz")
    assert ours.targets == TargetsPlaces("example-fuzzers", demo.TARGETS, store, "demo")
    assert (build.arch, build.resources, build.own_tools) == (ours.arch, ours.resources, ours.own_tools)
    assert build.made == ours.made == {"zbi", "blk", "kernel", "llvm-symbolizer"}
    assert build.build_ids == (tmp_path / "out/images/linux-fuzz/targets/.build-id",)
    assert build.module_directories == {
        "/targets/files": tmp_path / "out/images/linux-fuzz/targets/files",
        "/lib": tmp_path / "out/demo/libraries",
    }
    assert build.lists_targets
    assert build.renews


def test_who_names_a_list_of_fuzzers_has_another_guest_in_mind(tmp_path: Path) -> None:
    named = NamedTargets(tmp_path / "fuzz", "TOPCOAT_TARGETS")
    for key, lists in (("tests.json", False), ("fuzzers.json", False), ("qemu", True)):
        chosen = settings(tmp_path, resources={key: tmp_path / "mine"}, targets=named)
        assert load(chosen, {}).lists_targets is lists
    assert not load(settings(tmp_path), {"FUCHSIA_RESOURCES_DIR": "/r"}).lists_targets


@pytest.mark.parametrize(
    ("directory", "says", "package"),
    [
        ("fuzz", "", "fuzz"),
        ("a b", "", "targets"),
        (".hidden", "", "targets"),
        ("größe\n", "", "targets"),
        ("fuzz", 'package = "expat"', "expat"),
        ("example-fuzzers", 'package = "mine"', "mine"),
    ],
)
def test_the_package_of_targets(tmp_path: Path, directory: str, says: str, package: str) -> None:
    (tmp_path / directory).mkdir()
    (tmp_path / directory / "topcoat-targets.toml").write_text(says)
    build = linux(tmp_path / directory)
    assert build.name == f"linux-{package}"
    assert build.targets
    assert build.targets.package == package
    assert build.targets.image == tmp_path / f"out/images/linux-{package}/targets.squashfs"


@pytest.mark.parametrize(("disk", "named"), [(None, True), ("b3:image", True), ("b3:older", False)])
def test_only_a_guest_with_the_disk_of_today_gets_names_by_todays_programs(
    tmp_path: Path, disk: str | None, named: bool
) -> None:
    build = linux(tmp_path / "fuzz").as_booted(disk, lambda path: f"b3:{path.stem.removeprefix('targets') or 'image'}")
    assert ("/targets/files" in build.module_directories) is named
    assert "/lib" in build.module_directories


def test_a_disk_that_is_gone_is_not_that_of_today(tmp_path: Path) -> None:
    assert "/targets/files" not in linux(tmp_path / "fuzz").as_booted("b3:image", digest).module_directories
    fuchsia = load(settings(tmp_path), {"FUCHSIA_RESOURCES_DIR": "/r"})
    assert fuchsia.as_booted("b3:image", digest) is fuchsia


@pytest.mark.parametrize("place", ["out", "out/images", "link"])
def test_targets_in_the_store_are_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "out/images").mkdir(parents=True)
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(SettingsError, match="the targets cannot be in the store") as caught:
        load(settings(tmp_path, targets=NamedTargets(tmp_path / place, "TOPCOAT_TARGETS")), {})
    assert "TOPCOAT_ROOT" in caught.value.hint


@pytest.mark.parametrize("says", ["", 'package = "example-fuzzers"'])
def test_the_package_of_the_canary_is_ours(tmp_path: Path, says: str) -> None:
    place = tmp_path / ("mine\n" if says else "example-fuzzers")
    place.mkdir()
    (place / "topcoat-targets.toml").write_text(says)
    with pytest.raises(SettingsError) as caught:
        linux(place)
    shown = str(place).replace("\n", "\\n")
    assert str(caught.value) == (
        f"the package of {shown} cannot be example-fuzzers: that is the name of Topcoat's own targets"
    )
    assert caught.value.hint == "name another one in topcoat-targets.toml there: package = ..."


def test_a_wrong_file_of_sources_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "fuzz").mkdir()
    (tmp_path / "fuzz/topcoat-targets.toml").write_text("pakage = 1")
    with pytest.raises(SettingsError, match=rf"^{tmp_path}/fuzz/topcoat-targets.toml: there is no key 'pakage'$"):
        linux(tmp_path / "fuzz")


def test_a_linux_build_needs_targets(tmp_path: Path) -> None:
    with pytest.raises(
        MissingResource, match=r"^\[build\] kind = linux: nothing says where the targets are$"
    ) as caught:
        load(settings(tmp_path, "linux"), FUCHSIA)
    assert caught.value.hint == "name their directory: TOPCOAT_TARGETS=DIR, or [build] targets = DIR"


@pytest.mark.parametrize("kind", ["demo", "clusterfuzz"])
def test_other_builds_take_no_targets(tmp_path: Path, kind: BuildKind) -> None:
    build = linux(tmp_path / "fuzz", kind)
    assert (build.kind, build.name) == (kind, kind)
    assert build.targets is None or build.targets.source == demo.TARGETS


def test_bundle_has_every_path_of_undercoat(tmp_path: Path) -> None:
    build = load(settings(tmp_path), {"FUCHSIA_RESOURCES_DIR": str(tmp_path)})
    assert paths(build) == {key: tmp_path / path for key, path in BUNDLE.items()}
    assert (build.kind, build.name, build.arch) == ("clusterfuzz", "clusterfuzz", "x64")
    assert build.build_ids == (
        tmp_path / "build/buildtools/linux-x64/clang/lib/debug/.build_id",
        tmp_path / "build/out/default/.build-id",
        tmp_path / "build/out/default.zircon/.build-id",
    )


@pytest.mark.parametrize("named", ["", "bundle"])
def test_bundle_of_a_relative_name_starts_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    build = load(settings(tmp_path), {"FUCHSIA_RESOURCES_DIR": named})
    assert build.path("zbi") == tmp_path / named / "target/x64/fuchsia.zbi"


@pytest.mark.parametrize(
    ("arch", "kernel", "qemu"),
    [("x64", "multiboot.bin", "x86_64"), ("arm64", "qemu-boot-shim.bin", "aarch64")],
    ids=["x64 target", "arm64 target"],
)
@pytest.mark.parametrize(("machine", "cpu"), [("x86_64", "x64"), ("aarch64", "arm64")], ids=["x64 host", "arm64 host"])
def test_b5_checkout_has_every_path_of_undercoat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, kernel: str, qemu: str, machine: str, cpu: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    out, prebuilt = tmp_path / "out/default", tmp_path / "prebuilt/third_party"
    out.mkdir(parents=True)
    listed = [{"name": "zbi", "path": "x"}, {"name": "ffx", "path": f"host_{cpu}/ffx-of-the-list"}]
    (out / "tool_paths.json").write_text(json.dumps(listed))
    build = checkout(tmp_path, f"FUCHSIA_ARCH='{arch}'\n")
    words = {"KERNEL": kernel, "CPU": cpu, "QEMU": qemu}
    expected = {}
    for key, path in CHECKOUT.items():
        for word, meaning in words.items():
            path = path.replace(word, meaning)
        expected[key] = (out if path.startswith("B/") else prebuilt) / path[2:]
    assert paths(build) == expected
    assert (build.kind, build.name, build.arch) == ("local", f"local-{arch}", arch)
    assert build.build_ids == (prebuilt / f"clang/linux-{cpu}/lib/debug/.build-id", out / ".build-id")


def test_checkout_without_fuchsia_dir_is_two_directories_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    build = load(settings(tmp_path, "local"), {})
    assert build.path("tests.json").resolve() == tmp_path / "out/default/tests.json"


@pytest.mark.parametrize(
    "listing",
    [None, "{", '{"ffx": 1}', "[1]", '[{"name": "zbi", "path": "x"}]', '[{"name": "ffx"}]'],
    ids=["missing", "cut off", "object", "numbers", "without ffx", "without path"],
)
def test_without_a_listed_ffx_only_ffx_is_unknown(tmp_path: Path, listing: str | None) -> None:
    (tmp_path / "out/default").mkdir(parents=True)
    if listing is not None:
        (tmp_path / "out/default/tool_paths.json").write_text(listing)
    build = checkout(tmp_path)
    assert paths(build).keys() == CHECKOUT.keys() - {"ffx"}
    with pytest.raises(MissingResource, match='no path for "ffx" in the local build') as caught:
        build.path("ffx")
    assert caught.value.hint == "set [build] ffx = PATH in luigi.cfg"


@pytest.mark.parametrize(
    ("config", "arch"),
    [
        ("FUCHSIA_ARCH='arm64'\n", "arm64"),
        ("FUCHSIA_ARCH=arm64\n", "arm64"),
        ("# a comment\nFUCHSIA_BOARD_NAME='x=y'\nEMPTY=\nNONE=''\nFUCHSIA_ARCH='x64'", "x64"),
        ("FUCHSIA_ARCH=  x64  \n", "x64"),
    ],
    ids=["quoted", "unquoted", "among others", "blanks"],
)
def test_architecture_of_fx_config(tmp_path: Path, config: str, arch: str) -> None:
    assert checkout(tmp_path, config).arch == arch


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ("FUCHSIA_BOARD_NAME='x64'\n", "no FUCHSIA_ARCH in .*/fx.config", "run fx set in the checkout"),
        ("FUCHSIA_ARCH=''\n", "no FUCHSIA_ARCH in .*/fx.config", "run fx set in the checkout"),
        ("FUCHSIA_ARCH='riscv64'\n", "unsupported FUCHSIA_ARCH 'riscv64'", "Topcoat boots x64 and arm64"),
        (None, "has no fx.config: .*: No such file", "run fx set in the checkout"),
    ],
    ids=["missing arch", "empty arch", "unsupported arch", "missing file"],
)
def test_unusable_fx_config(tmp_path: Path, config: str | None, message: str, hint: str) -> None:
    with pytest.raises(MissingResource, match=message) as caught:
        checkout(tmp_path, config)
    assert caught.value.hint.startswith(hint)


def test_build_directory_may_lie_elsewhere(tmp_path: Path) -> None:
    build = checkout(tmp_path / "checkout", pointer=f"{tmp_path}/elsewhere\n")
    assert build.path("tests.json") == tmp_path / "elsewhere/tests.json"


def test_checkout_that_is_not_configured(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=rf"FUCHSIA_DIR={tmp_path} is no configured checkout") as caught:
        load(settings(tmp_path), {"FUCHSIA_DIR": str(tmp_path)})
    assert caught.value.hint == "run fx set there, or correct FUCHSIA_DIR"


@pytest.mark.parametrize("environ", [{"FUCHSIA_RESOURCES_DIR": "/bundle"}, {}], ids=["bundle", "demo"])
def test_a_setting_overrides_one_resource(tmp_path: Path, environ: dict[str, str]) -> None:
    plain = load(settings(tmp_path), environ)
    build = load(settings(tmp_path, resources={"zbi": tmp_path / "my.zbi", "zbitool": tmp_path / "my-zbi"}), environ)
    assert build.paths("zbi", "zbitool") == (tmp_path / "my.zbi", tmp_path / "my-zbi")
    assert build.paths("blk", "kernel", "qemu") == plain.paths("blk", "kernel", "qemu")
    with pytest.raises(
        MissingResource, match=r"the build's zbi is missing: .*/my\.zbi: there is no such file"
    ) as caught:
        build.require("zbi")
    assert caught.value.hint == "correct [build] zbi in luigi.cfg"
    with pytest.raises(MissingResource, match="the build's zbitool is missing"):
        build.tool("zbitool")


def test_demo_build_serves_its_own_tools_and_makes_its_own_images(tmp_path: Path) -> None:
    build = load(settings(tmp_path), {})
    demo = tmp_path / "out/demo"
    assert (build.kind, build.name, build.arch, build.build_ids) == (
        "demo", "demo", "x64", (tmp_path / "out/images/demo/targets/.build-id",),
    )  # fmt: skip
    assert build.paths("zbi", "blk", "kernel") == (demo / "initramfs.cpio", demo / "fvm.blk", demo / "vmlinux")
    assert build.path("llvm-symbolizer") == demo / "tools/llvm-symbolizer"
    for key in (
        "zbi",
        "blk",
        "kernel",
        "zbitool",
        "fvm",
        "llvm-symbolizer",
        "symbolizer",
    ):
        build.require(key)
    assert os.access(build.path("symbolizer"), os.X_OK)
    assert build.tool("zbitool") == Tool.module("zbitool", "pipeline.images.cpio")
    assert build.tool("fvm") == Tool.module("fvm", "pipeline.images.fvm")


def test_demo_build_takes_qemu_from_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingResource, match="the build's qemu is missing") as caught:
        load(settings(tmp_path), {}).require("qemu")
    assert "apt-get install" in caught.value.hint
    program(tmp_path / "qemu-system-x86_64")
    assert load(settings(tmp_path), {}).path("qemu") == tmp_path / "qemu-system-x86_64"


def test_a_part_of_the_demo_guest_that_is_not_there_is_made_by_the_same_command(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=r"targets\.json: No such file") as caught:
        FuzzTargets.of(load(settings(tmp_path), {}))
    assert "make it: luigi --module tasks TargetsImage" in caught.value.hint


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_qemu_img_is_the_one_beside_qemu_else_that_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_path = program(tmp_path / "path/qemu-img")
    monkeypatch.setenv("PATH", str(in_path.parent))
    qemu = program(tmp_path / "real/qemu")
    (tmp_path / "link").symlink_to(qemu)
    chosen = settings(tmp_path, resources={"qemu": tmp_path / "link"})
    assert load(chosen, {}).path("qemu-img") == in_path
    beside = program(tmp_path / "real/qemu-img")
    assert load(chosen, {}).path("qemu-img") == beside
    named = settings(tmp_path, resources={"qemu": qemu, "qemu-img": tmp_path / "named"})
    assert load(named, {}).path("qemu-img") == tmp_path / "named"


def test_qemu_img_that_is_nowhere_has_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingResource, match="the build's qemu-img is missing: qemu-img") as caught:
        load(settings(tmp_path), {}).require("qemu-img")
    assert "apt-get install qemu-utils" in caught.value.hint


def test_require_gives_the_path_of_a_usable_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert Resource("zbi", tmp_path / "file", "hint").require() == tmp_path / "file"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nothing", "there is no such file"),
        ("file/below", "there is no such file"),
        ("directory", "it is not a file"),
        ("empty", "it is empty"),
    ],
)
def test_require_says_what_is_wrong(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(MissingResource) as caught:
        Resource("zbi", tmp_path / name, "do this").require()
    assert str(caught.value) == f"the build's zbi is missing: {tmp_path / name}: {problem}"
    assert caught.value.hint == "do this"


def test_require_says_that_a_file_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    monkeypatch.setattr(os, "access", lambda asked, mode: (asked, mode) != (path, os.R_OK))  # root may read all
    with pytest.raises(MissingResource, match="it cannot be read"):
        Resource("zbi", path, "do this").require()


def test_require_says_that_a_path_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(MissingResource):
        Resource("zbi", tmp_path / ("x" * 300), "do this").require()


def test_b8_unknown_keys_fail_all_that_were_asked_for(tmp_path: Path) -> None:
    build = load(settings(tmp_path), {"FUCHSIA_RESOURCES_DIR": "/bundle"})
    with pytest.raises(MissingResource, match='no path for "sbi" in the clusterfuzz build') as caught:
        build.paths("zbi", "sbi")
    assert caught.value.hint == "correct the key"
    assert build.paths("kernel", "zbi") == (build.path("kernel"), build.path("zbi"))
    for ask in (build.require, build.tool, build.path):
        with pytest.raises(MissingResource, match='no path for "sbi"'):
            ask("sbi")
