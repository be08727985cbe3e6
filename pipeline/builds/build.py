"""Builds: where the files that a boot needs are, by their keys.

There are four kinds: `local` is a Fuchsia checkout named by FUCHSIA_DIR, `clusterfuzz` the bundle named by
FUCHSIA_RESOURCES_DIR, `linux` the small Linux guest that Topcoat makes itself, with the targets in the directory that
TOPCOAT_TARGETS names, and `demo` the same with targets of ours. The keys and paths of the first two are those of
Fuchsia's own launcher `undercoat`, with two corrections: host programs are looked for under the CPU of the host, not of
the target, and unquoted values in fx.config count.
"""

import json
import os
import platform
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from pipeline.builds import demo
from pipeline.builds.linux import SYMBOLIZER
from pipeline.builds.targets import sources
from pipeline.builds.targets.places import IMAGE_FILES, OWN_PACKAGE, TargetsPlaces
from pipeline.errors import MissingResource, SettingsError
from pipeline.host.tools import Tool
from pipeline.images import git_lfs
from pipeline.settings import RESOURCE_KEYS, Settings
from pipeline.text.printable import one_line

Kind = Literal["local", "clusterfuzz", "linux", "demo"]
Arch = Literal["x64", "arm64"]

_QEMU_CPU: dict[Arch, str] = {"x64": "x86_64", "arm64": "aarch64"}

# Relative to FUCHSIA_RESOURCES_DIR. `.build_id` with an underscore is a peculiarity of the bundle.
_BUNDLE = {
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
_OR_TOOLS = {"zbitool": ", or [tools] zbi", "fvm": ", or [tools] fvm"}
_BUNDLE_BUILD_IDS = (
    "build/buildtools/linux-x64/clang/lib/debug/.build_id",
    "build/out/default/.build-id",
    "build/out/default.zircon/.build-id",
)


@dataclass(frozen=True)
class Resource:
    """One file of a build: its key, where it should be, and, for hints, how to make it or name another one."""

    key: str
    path: Path
    setting: str

    def require(self) -> Path:
        """The path. Raises MissingResource if there is no readable, non-empty file, or only a Git LFS pointer to it."""
        if problem := self._problem():
            raise MissingResource(f"the build's {self.key} is missing: {self.path}: {problem}", hint=self.setting)
        if git_lfs.is_pointer(self.path):
            raise MissingResource(
                f"the build's {self.key} is missing: {self.path} is only a Git LFS pointer to it",
                hint=f"{git_lfs.HINT}; or {self.setting}",
            )
        return self.path

    def _problem(self) -> str:
        try:
            facts = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return "there is no such file"
        except OSError as error:
            return error.strerror or str(error)
        if not stat.S_ISREG(facts.st_mode):
            return "it is not a file"
        if not os.access(self.path, os.R_OK):
            return "it cannot be read"
        return "" if facts.st_size else "it is empty"


@dataclass(frozen=True)
class Build:
    """A set of resources, found by key.

    `name` is that of its directory in the store. `why` says why this build was chosen. `build_ids` are the directories
    with debug symbols, in the order in which they are searched. `own_tools` has the keys that Topcoat's own programs
    serve, `made` those whose files Topcoat's own tasks make.
    """

    kind: Kind
    arch: Arch
    name: str
    why: str
    resources: Mapping[str, Resource]
    build_ids: tuple[Path, ...] = ()
    own_tools: Mapping[str, Tool] = field(default_factory=dict)
    own_why: Mapping[str, str] = field(default_factory=dict)
    """By key, why one of Topcoat's own programs serves it, where one would expect that of the build."""
    made: frozenset[str] = frozenset()
    targets: TargetsPlaces | None = None
    """Where the targets of the Linux guest are, and what is made of them; None for a build of Fuchsia."""
    module_directories: Mapping[str, Path] = field(default_factory=dict)
    """By the directory in the guest, the directory of the host with the same files, unstripped.

    For symbolizing programs that have no build id.
    """

    @property
    def lists_targets(self) -> bool:
        """Whether the targets of the Linux guest are its fuzzers: the user has no list of others."""
        return self.targets is not None and not {"tests.json", "fuzzers.json"} & self.resources.keys()

    @property
    def renews(self) -> bool:
        """Whether the guest is Topcoat's own: it knows its boot id, and can renew what no two clones may share."""
        return "zbi" in self.made

    def as_booted(self, disk: str | None, digest: Callable[[Path], str]) -> "Build":
        """The build for a guest that has the disk with targets of this digest; None if that is not known.

        If another one was made since, programs without a build id are not named by today's originals: no names are
        better than those of other code.
        """
        if self.targets is None or disk is None:
            return self
        with suppress(OSError):
            if digest(self.targets.image) == disk:
                return self
        kept = {guest: host for guest, host in self.module_directories.items() if guest != str(IMAGE_FILES)}
        return replace(self, module_directories=kept)

    def path(self, key: str) -> Path:
        """The path for `key`, whether the file exists or not. Raises MissingResource for an unknown key."""
        return self._resource(key).path

    def paths(self, *keys: str) -> tuple[Path, ...]:
        """The paths for all `keys`, in their order. Raises MissingResource if one of them is unknown."""
        return tuple(self.path(key) for key in keys)

    def require(self, key: str) -> None:
        """Raise MissingResource if there is no usable file for `key`, and nothing in Topcoat serves or makes it."""
        if key not in self.own_tools and key not in self.made:
            self._resource(key).require()

    def tool(self, key: str) -> Tool:
        """The host program for `key`: Topcoat's own if it serves the key, else the build's. Raises MissingResource."""
        return self.own_tools.get(key) or Tool.at(key, self._resource(key).require())

    def _resource(self, key: str) -> Resource:
        if key not in self.resources:
            raise MissingResource(
                f'no path for "{key}" in the {self.kind} build',
                hint=f"set [build] {key} = PATH in luigi.cfg" if key in RESOURCE_KEYS else "correct the key",
            )
        return self.resources[key]


def load(settings: Settings, environ: Mapping[str, str] = os.environ) -> Build:
    """Find the build that the settings and the environment choose. Raises MissingResource."""
    kind, why = choose(settings, environ)
    if kind == "clusterfuzz":
        return _overridden(_clusterfuzz(Path(environ.get("FUCHSIA_RESOURCES_DIR") or "."), why), settings)
    if kind == "local":
        return _overridden(_local(Path(environ.get("FUCHSIA_DIR") or "../..").absolute(), why), settings)
    return _overridden(_linux(kind, settings, why), settings)


def choose(settings: Settings, environ: Mapping[str, str] = os.environ) -> tuple[Kind, str]:
    """The kind of build and the reason for it: `[build] kind`, else what names targets or a build, else the demo.

    FUCHSIA_RESOURCES_DIR counts when it is set at all, even if it is empty, as for `undercoat`.
    """
    if settings.build_kind != "auto":
        return settings.build_kind, f"[build] kind = {settings.build_kind}"
    if settings.targets:
        return "linux", f"{settings.targets.said} names targets"
    if "FUCHSIA_RESOURCES_DIR" in environ:
        return "clusterfuzz", "FUCHSIA_RESOURCES_DIR is set"
    if environ.get("FUCHSIA_DIR"):
        return "local", "FUCHSIA_DIR is set"
    return "demo", "neither TOPCOAT_TARGETS nor FUCHSIA_RESOURCES_DIR nor FUCHSIA_DIR is set"


def _overridden(build: Build, settings: Settings) -> Build:
    changed = {
        key: Resource(key, path, f"correct [build] {key} in luigi.cfg{_OR_TOOLS.get(key, '')}")
        for key, path in settings.resources.items()
    }
    resources = {**build.resources, **changed}
    if "qemu-img" not in resources:
        resources["qemu-img"] = _qemu_img(resources["qemu"].path)
    own_tools = {key: tool for key, tool in build.own_tools.items() if key not in changed}
    return replace(build, resources=resources, own_tools=own_tools, made=build.made - changed.keys())


def _qemu_img(qemu: Path) -> Resource:
    """QEMU's own image program, which makes the overlay of each instance: the one beside QEMU, else that of PATH."""
    beside = Path(os.path.realpath(qemu)).parent / "qemu-img"
    found = beside if beside.exists() else _in_path("qemu-img")
    return Resource("qemu-img", found, "install it (apt-get install qemu-utils), or set [build] qemu-img = PATH")


def _in_path(name: str) -> Path:
    """The program of this name that PATH has, as an absolute path: QEMU does not start in today's directory."""
    found = shutil.which(name)
    return Path(os.path.abspath(found) if found else name)


def _host_cpu() -> Arch:
    return "arm64" if platform.machine() in ("aarch64", "arm64") else "x64"


def _clusterfuzz(root: Path, why: str) -> Build:
    root = root.absolute()
    hint = "is FUCHSIA_RESOURCES_DIR the unpacked bundle? [build] {} = PATH names another file"
    resources = {key: Resource(key, root / path, hint.format(key)) for key, path in _BUNDLE.items()}
    build_ids = tuple(root / path for path in _BUNDLE_BUILD_IDS)
    return Build("clusterfuzz", "x64", "clusterfuzz", why, resources, build_ids)


def _local(root: Path, why: str) -> Build:
    out = _build_directory(root)
    arch = _target_arch(out / "fx.config")
    host = out / f"host_{_host_cpu()}"
    prebuilt = root / "prebuilt/third_party"
    platform_name = f"linux-{_host_cpu()}"
    paths = {
        "zbi": out / "obj/build/images/fuchsia/fuchsia/fuchsia.zbi",
        "blk": out / "obj/build/images/fuchsia/fuchsia/fvm.blk",
        "kernel": out / ("multiboot.bin" if arch == "x64" else "qemu-boot-shim.bin"),
        "fvm": host / "fvm",
        "zbitool": host / "zbi",
        "qemu": prebuilt / f"qemu/{platform_name}/bin/qemu-system-{_QEMU_CPU[arch]}",
        "llvm-symbolizer": prebuilt / f"clang/{platform_name}/bin/llvm-symbolizer",
        "symbolizer": host / "symbolize",
        "tests.json": out / "tests.json",
        "fuzzers.json": out / "fuzzers.json",
        **_listed_tools(out),
    }
    hint = "build it (fx build), or set [build] {} = PATH"
    resources = {key: Resource(key, path, hint.format(key)) for key, path in paths.items()}
    build_ids = (prebuilt / f"clang/{platform_name}/lib/debug/.build-id", out / ".build-id")
    return Build("local", arch, f"local-{arch}", why, resources, build_ids)


def _build_directory(root: Path) -> Path:
    pointer = root / ".fx-build-dir"
    try:
        named = pointer.read_text(errors="surrogateescape").strip()
    except OSError as error:
        raise MissingResource(
            f"FUCHSIA_DIR={root} is no configured checkout: {pointer}: {error.strerror}",
            hint="run fx set there, or correct FUCHSIA_DIR",
        ) from error
    return root / named


def _target_arch(config: Path) -> Arch:
    try:
        text = config.read_text(errors="replace")
    except OSError as error:
        raise MissingResource(
            f"the build directory has no fx.config: {config}: {error.strerror}", hint="run fx set in the checkout"
        ) from error
    lines = re.findall(r"^([^=\n]+)=(?:'([^']*)'|(.*))$", text, re.MULTILINE)
    values = {name.strip(): quoted or bare.strip() for name, quoted, bare in lines}
    arch = values.get("FUCHSIA_ARCH")
    if not arch:
        raise MissingResource(f"no FUCHSIA_ARCH in {config}", hint="run fx set in the checkout")
    if arch not in _QEMU_CPU:
        raise MissingResource(
            f"{config}: unsupported FUCHSIA_ARCH {arch!r}",
            hint="Topcoat boots x64 and arm64; run fx set for one of them",
        )
    return cast(Arch, arch)


def _listed_tools(out: Path) -> dict[str, Path]:
    """The path of `ffx` by tool_paths.json. Without that file or entry there is none: only what needs ffx fails."""
    try:
        entries = json.loads((out / "tool_paths.json").read_text())
        return {entry["name"]: out / entry["path"] for entry in entries if entry.get("name") == "ffx"}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}


def _linux(kind: Kind, settings: Settings, why: str) -> Build:
    parts = settings.store.demo
    remade = "not made yet, or deleted meanwhile: run the same again, or make it: luigi --module tasks BootInstance"
    made = {
        "zbi": parts / "initramfs.cpio",
        "blk": parts / "fvm.blk",
        "kernel": parts / "vmlinux",
        "llvm-symbolizer": parts / "tools/llvm-symbolizer",
    }
    resources = {
        **{key: Resource(key, path, remade) for key, path in made.items()},
        "symbolizer": Resource("symbolizer", SYMBOLIZER, "it is part of Topcoat: install that anew"),
        "qemu": Resource(
            "qemu",
            _in_path("qemu-system-x86_64"),
            "as root: apt-get install --no-install-recommends qemu-system-x86 qemu-utils (or set [build] qemu = PATH)",
        ),
    }
    own_tools = {
        "zbitool": Tool.module("zbitool", "pipeline.images.cpio"),
        "fvm": Tool.module("fvm", "pipeline.images.fvm"),
    }
    targets = _demo_targets(settings) if kind == "demo" else _own_targets(settings)
    return Build(
        kind,
        "x64",
        targets.build,
        why,
        resources,
        (targets.build_ids,),
        own_tools,
        made=frozenset(made),
        targets=targets,
        module_directories={str(IMAGE_FILES): targets.files, "/lib": parts / "libraries"},
    )


def _demo_targets(settings: Settings) -> TargetsPlaces:
    return TargetsPlaces(OWN_PACKAGE, demo.TARGETS, settings.store, build="demo")


def _own_targets(settings: Settings) -> TargetsPlaces:
    if settings.targets is None:
        raise MissingResource(
            "[build] kind = linux: nothing says where the targets are",
            hint="name their directory: TOPCOAT_TARGETS=DIR, or [build] targets = DIR",
        )
    source = settings.targets.directory
    root = Path(os.path.realpath(settings.store.root))
    if Path(os.path.realpath(source)).is_relative_to(root):
        raise SettingsError(
            f"the targets cannot be in the store: {source}",
            hint="put the store elsewhere, [store] root or TOPCOAT_ROOT; or name another directory of targets",
        )
    package = sources.read(source).package
    if package == OWN_PACKAGE:
        raise SettingsError(
            f"the package of {one_line(str(source))} cannot be {package}: that is the name of Topcoat's own targets",
            hint=f"name another one in {sources.NAME} there: package = ...",
        )
    return TargetsPlaces(package, source, settings.store, build=f"linux-{package}")
