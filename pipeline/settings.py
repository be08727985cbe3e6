"""What luigi.cfg and the environment say, as frozen values.

The same files are read that luigi reads, in the same order, the last one wins: /etc/luigi/luigi.cfg, ./luigi.cfg, and
the file named by LUIGI_CONFIG_PATH. A path in a file is relative to that file; `~` and `$NAME` are expanded. The
luigi.cfg at the top of the project lists every setting with its default. Unknown names in our sections are errors:
a typing mistake must not silently mean "default".
"""

import configparser
import errno
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, cast

from pipeline.errors import SettingsError, UsageError
from pipeline.faults import host_faults
from pipeline.size import parse_size

BuildKind = Literal["auto", "local", "clusterfuzz", "demo"]
Accel = Literal["auto", "kvm", "tcg"]
Ready = Literal["ssh", "marker"]
ToolChoice = Literal["auto", "build", "builtin"]

RESOURCE_KEYS = (
    "zbi",
    "blk",
    "kernel",
    "qemu",
    "qemu-img",
    "zbitool",
    "fvm",
    "llvm-symbolizer",
    "symbolizer",
    "tests.json",
    "fuzzers.json",
    "ffx",
)
"""Every key under which a build may have a file; each can be overridden in `[build]`."""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)

_KEYS: dict[str, tuple[str, ...]] = {
    "store": ("root",),
    "build": ("kind", *RESOURCE_KEYS),
    "tools": ("timeout", "proof", "zbi", "fvm"),
    "qemu": ("accel", "memory", "smp", "cpu", "restrict", "arguments"),
    "boot": ("ready", "timeout", "scale", "attempts", "log_size"),
    "demo": ("packages",),
}


def known_keys() -> Mapping[str, tuple[str, ...]]:
    """The sections of luigi.cfg that are ours, and the settings of each."""
    return _KEYS


def _unwritable(path: Path) -> int | None:
    """Why nothing can be made in `path`, as an errno; None if it can."""
    if not path.is_dir():
        return errno.ENOTDIR
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return errno.EROFS
    return None if os.access(path, os.W_OK | os.X_OK) else errno.EACCES


@dataclass(frozen=True)
class Store:
    """Where everything that Topcoat makes lies. `root` is absolute."""

    root: Path

    def require_writable(self) -> None:
        """Raise StoreError if files cannot be made in it. Makes nothing."""
        with host_faults("the store cannot be used"):
            there = next(path for path in (self.root, *self.root.parents) if path.exists())
            number = _unwritable(there)
            if number is not None:
                raise OSError(number, os.strerror(number), str(there))

    @property
    def keys(self) -> Path:
        """The directory of the SSH key pair."""
        return self.root / "keys"

    @property
    def demo(self) -> Path:
        """The directory of the demo guest's parts."""
        return self.root / "demo"

    @property
    def instances(self) -> Path:
        """The directory with one directory for each instance."""
        return self.root / "instances"

    @property
    def cache(self) -> Path:
        """The directory of what can be lost at any time."""
        return self.root / "cache"

    @property
    def all_images(self) -> Path:
        """The directory with one directory for each build."""
        return self.root / "images"

    def images(self, build: str) -> Path:
        """The directory of the prepared images of the build with this name."""
        return self.all_images / build


@dataclass(frozen=True)
class Tools:
    """`[tools]`"""

    timeout: float = 600.0
    """Seconds that one run of a host tool may take."""
    proof: bool = True
    """What a tool has made is looked into before it counts."""
    zbi: ToolChoice = "auto"
    """auto: the build's program if it works, else Topcoat's own; a path in luigi.cfg becomes the build's."""
    fvm: ToolChoice = "auto"


@dataclass(frozen=True)
class Qemu:
    """`[qemu]`. None: the default of the guest (see pipeline/qemu/command.py)."""

    accel: Accel = "auto"
    memory: int | None = None
    """MiB"""
    smp: int | None = None
    cpu: str | None = None
    restrict: bool = True
    """The guest cannot reach anything outside; the host reaches its SSH port all the same."""
    arguments: tuple[str, ...] = ()
    """Further arguments, put last."""


@dataclass(frozen=True)
class Timeouts:
    """Every limit of a boot in one place: seconds, as fit for KVM on a host that is not overloaded."""

    start: float = 15.0
    """QEMU's own start, until its monitor is there."""
    boot: float = 60.0
    """From QEMU's start until the guest is ready, all stages together, while this host's own boots are not known."""
    boot_least: float = 15.0
    """No limit that is derived from this host's boots is shorter."""
    boot_most: float = 300.0
    """No boot takes longer, however slow the host's boots have been, and however loaded it is."""
    connect: float = 5.0
    """TCP connection and SSH key exchange, one attempt."""
    banner: float = 5.0
    """The SSH server's first line, one attempt. QEMU accepts connections before the guest listens."""
    auth: float = 10.0
    command: float = 10.0
    """The command that proves the guest ready."""
    retry: float = 0.2
    """Pause between two attempts."""
    stop: float = 3.0
    """Stopping an instance, all phases together. Never scaled: it is a promise to callers."""

    def scaled(self, factor: float) -> "Timeouts":
        """The same limits for a host that is `factor` times slower."""
        longer = {field.name: getattr(self, field.name) * factor for field in fields(self)}
        return replace(self, **longer | {"stop": self.stop, "retry": self.retry})

    def learned(self, slowest: float) -> "Timeouts":
        """The same limits, but `boot` as fits a host whose slowest boots of this kind have taken `slowest` seconds."""
        return replace(self, boot=min(self.boot_most, max(self.boot_least, SLACK * slowest)))


TCG_SCALE = 5.0
"""Emulated guests boot this much slower than with KVM, at the worst that is still usable."""

SLACK = 5.0
"""A boot may take this many times as long as the slowest of this host's."""

ATTEMPTS_OF_HOST = 3
"""How often a boot is tried whose failure was the host's and may pass."""


@dataclass(frozen=True)
class Boot:
    """`[boot]`"""

    ready: Ready = "ssh"
    timeout: float | None = None
    scale: float | None = None
    attempts: int = 1
    """How often a boot is tried whose failure was the guest's."""
    log_size: int = 64 << 20
    """Bytes after which a log of a running instance is rotated."""

    def timeouts(self, accel: Literal["kvm", "tcg"], slowest: float | None = None) -> Timeouts:
        """The limits for this host: scaled by `scale`, else by TCG_SCALE without KVM, and learned from past boots.

        `slowest` is what those took, where they are known. `timeout` overrides all that concerns the whole boot.
        """
        scale = self.scale if self.scale is not None else (TCG_SCALE if accel == "tcg" else 1.0)
        timeouts = Timeouts().scaled(scale)
        if self.timeout is None:
            return timeouts if slowest is None else timeouts.learned(slowest)
        return replace(timeouts, boot=self.timeout, boot_most=self.timeout)


@dataclass(frozen=True)
class Settings:
    """All settings."""

    store: Store
    build_kind: BuildKind
    resources: Mapping[str, Path]
    """Overridden resources of the build, by key."""
    tools: Tools
    qemu: Qemu
    boot: Boot
    demo_packages: Path | None
    """A directory with the Debian packages of the demo guest, for machines without apt."""


class _Reader:
    """The merged files: text and origin of each value."""

    def __init__(self, environ: Mapping[str, str], directory: Path) -> None:
        self.environ = environ
        self.values: dict[tuple[str, str], tuple[str, Path]] = {}
        for path in self._files(directory):
            self._read(path)

    def _files(self, directory: Path) -> list[Path]:
        usual = [Path("/etc/luigi/luigi.cfg"), directory / "luigi.cfg"]
        found = [path for path in usual if path.is_file()]
        if named := self.environ.get("LUIGI_CONFIG_PATH"):
            path = directory / named
            if not path.is_file():
                raise SettingsError(f"LUIGI_CONFIG_PATH names {named}, which is no file", hint="correct it or unset it")
            found.append(path)
        return found

    def _read(self, path: Path) -> None:
        # [DEFAULT] is luigi's business
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        try:
            parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
        except (configparser.Error, UnicodeDecodeError, OSError) as error:
            raise SettingsError(f"{path} cannot be read: {error}", hint="correct that file") from error
        for section in parser.sections():
            if section in _KEYS:
                for key, value in parser.items(section):
                    self._check_key(path, section, key)
                    self.values[section, key] = (value.strip(), path)

    def _check_key(self, path: Path, section: str, key: str) -> None:
        if key not in _KEYS[section]:
            import difflib

            near = difflib.get_close_matches(key, _KEYS[section], n=1)
            known = ", ".join(_KEYS[section])
            hint = f"did you mean {near[0]}?" if near else f"[{section}] knows: {known}"
            raise SettingsError(f"{path}: [{section}] has no setting named {key}", hint=hint)

    def text(self, section: str, key: str) -> str | None:
        value = self.values.get((section, key))
        return value[0] if value and value[0] else None

    def choice(self, section: str, key: str, allowed: tuple[str, ...]) -> str:
        """The value, or the first of `allowed` where there is none."""
        value = self.text(section, key)
        if value is None:
            return allowed[0]
        if value not in allowed:
            self._refuse(section, key, f"use one of: {', '.join(allowed)}")
        return value

    def number(self, section: str, key: str, *, least: float = 0.0) -> float | None:
        text = self.text(section, key)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least < value < float("inf"):
            self._refuse(section, key, f"give a number greater than {least:g}")
        return value

    def whole(self, section: str, key: str) -> int | None:
        value = self.number(section, key)
        if value is not None and value != int(value):
            self._refuse(section, key, "give a whole number")
        return None if value is None else int(value)

    def size(self, section: str, key: str) -> int | None:
        text = self.text(section, key)
        try:
            return parse_size(text) if text else None
        except UsageError as error:
            self._refuse(section, key, error.hint)
            raise

    def switch(self, section: str, key: str, default: str) -> bool:
        words = {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False}
        value = (self.text(section, key) or default).lower()
        if value not in words:
            self._refuse(section, key, "use on or off")
        return words[value]

    def words(self, section: str, key: str) -> tuple[str, ...]:
        try:
            return tuple(shlex.split(self.text(section, key) or ""))
        except ValueError as error:
            self._refuse(section, key, f"correct its quotes ({error})")
            raise

    def path(self, section: str, key: str) -> Path | None:
        text = self.text(section, key)
        return None if text is None else self.values[section, key][1].parent.absolute() / self._expand(section, key)

    def _expand(self, section: str, key: str) -> str:
        try:
            return str(Path(_VARIABLE.sub(self._variable, self.values[section, key][0])).expanduser())
        except (KeyError, RuntimeError) as error:
            self._refuse(section, key, f"there is no such variable or user: {error}")
            raise

    def _variable(self, match: re.Match[str]) -> str:
        return self.environ[match[1] or match[2]]

    def _refuse(self, section: str, key: str, hint: str) -> None:
        value, path = self.values[section, key]
        raise SettingsError(f"{path}: [{section}] {key} = {value} cannot be used", hint=hint)


def load(environ: Mapping[str, str] = os.environ, directory: Path | None = None) -> Settings:
    """Read the settings that hold in `directory` (default: the current one). Raises SettingsError."""
    here = (directory or Path.cwd()).absolute()
    reader = _Reader(environ, here)
    named_root = environ.get("TOPCOAT_ROOT")
    root = here / named_root if named_root else reader.path("store", "root") or here / "out"
    overrides = {key: path for key in RESOURCE_KEYS if (path := reader.path("build", key))}
    zbi, fvm = (_tool(reader, name, key, overrides) for name, key in (("zbi", "zbitool"), ("fvm", "fvm")))
    return Settings(
        store=Store(Path(os.path.abspath(root))),
        build_kind=cast(BuildKind, reader.choice("build", "kind", ("auto", "local", "clusterfuzz", "demo"))),
        resources=overrides,
        tools=Tools(reader.number("tools", "timeout") or 600.0, reader.switch("tools", "proof", "on"), zbi, fvm),
        qemu=Qemu(
            accel=cast(Accel, reader.choice("qemu", "accel", ("auto", "kvm", "tcg"))),
            memory=reader.whole("qemu", "memory"),
            smp=reader.whole("qemu", "smp"),
            cpu=reader.text("qemu", "cpu"),
            restrict=reader.switch("qemu", "restrict", "on"),
            arguments=reader.words("qemu", "arguments"),
        ),
        boot=Boot(
            ready=cast(Ready, reader.choice("boot", "ready", ("ssh", "marker"))),
            timeout=reader.number("boot", "timeout"),
            scale=reader.number("boot", "scale"),
            attempts=reader.whole("boot", "attempts") or 1,
            log_size=reader.size("boot", "log_size") or Boot.log_size,
        ),
        demo_packages=reader.path("demo", "packages"),
    )


def names_store(environ: Mapping[str, str] = os.environ, directory: Path | None = None) -> bool:
    """Whether the environment or a luigi.cfg says where the store is. Raises SettingsError."""
    here = (directory or Path.cwd()).absolute()
    return bool(environ.get("TOPCOAT_ROOT")) or _Reader(environ, here).text("store", "root") is not None


def _tool(reader: _Reader, name: str, key: str, overrides: dict[str, Path]) -> ToolChoice:
    """What `[tools] NAME` says. A path takes the place of the build's program, and is then the one to use."""
    text = reader.text("tools", name)
    if text in ("auto", "build", "builtin"):
        return cast(ToolChoice, text)
    path = reader.path("tools", name)
    if path is not None:
        overrides[key] = path
    return "build" if key in overrides else "auto"
