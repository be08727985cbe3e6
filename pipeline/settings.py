"""The settings from luigi.cfg and the environment, as frozen values.

The luigi.cfg at the top of the project lists every setting with its default; pipeline/configuration.py says which files
are read, and how.
"""

import errno
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from pipeline.configuration import Bytes, Configuration, Count, Seconds, Share
from pipeline.errors import SettingsError
from pipeline.host.faults import host_faults

BuildKind = Literal["auto", "local", "clusterfuzz", "linux", "demo"]
Accel = Literal["auto", "kvm", "tcg"]
Accelerator = Literal["kvm", "tcg"]
TcgThreads = Literal["auto", "single", "multi"]
Ready = Literal["ssh", "marker"]
ToolChoice = Literal["auto", "build", "builtin"]
Warm = Literal["auto", "always", "never"]
Fresh = Literal["auto", "on_crash", "always", "never"]
Allocation = Literal["gain", "even"]
Canary = Literal["on", "warn", "off"]
CapsuleChoice = Literal["off", "first"]

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
"""The key of each file that a build may have; every one of them can be overridden in `[build]`."""

_CONTROLS = re.compile(r"[\x00-\x08\n-\x1f\x7f]")


def _unwritable(path: Path) -> int | None:
    """The errno that says why no file can be made in `path`; None if one can."""
    if not path.is_dir():
        return errno.ENOTDIR
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return errno.EROFS
    return None if os.access(path, os.W_OK | os.X_OK) else errno.EACCES


@dataclass(frozen=True)
class Store:
    """The directory tree that holds everything Topcoat makes. `root` is absolute."""

    root: Path

    def require_writable(self) -> None:
        """Raise StoreError if no files can be made in the store. Makes nothing."""
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
        """The directory of the Linux guest's parts, and of the compiler."""
        return self.root / "demo"

    @property
    def instances(self) -> Path:
        """The directory with one directory for each instance."""
        return self.root / "instances"

    @property
    def campaigns(self) -> Path:
        """The directory with one directory for each campaign."""
        return self.root / "campaigns"

    @property
    def crashes(self) -> Path:
        """The directory of the crashes of all campaigns: see pipeline.fuzz.crashes.store."""
        return self.root / "crashes"

    @property
    def cache(self) -> Path:
        """The directory of files that may be deleted at any time, at the cost of time only."""
        return self.root / "cache"

    @property
    def digests(self) -> Path:
        """The path of the cache of digests: see pipeline.store.digest_cache."""
        return self.cache / "digests.jsonl"

    @property
    def all_templates(self) -> Path:
        """The directory of saved guests, with one directory for each build."""
        return self.root / "templates"

    def template(self, build: str) -> Path:
        """The directory of the saved guest of the build with this name."""
        return self.all_templates / build

    @property
    def targets(self) -> Path:
        """The directory of compiled targets and of libraries for targets, with one directory for each package."""
        return self.root / "targets"

    @property
    def all_images(self) -> Path:
        """The directory of prepared images, with one directory for each build."""
        return self.root / "images"

    def images(self, build: str) -> Path:
        """The directory of the prepared images of the build with this name."""
        return self.all_images / build


@dataclass(frozen=True)
class ToolSettings:
    """The section `[tools]`: how the programs are run that prepare images."""

    timeout: float = 600.0
    """Seconds that one run of a host tool may take."""
    proof: bool = True
    """Whether what a tool has made is looked into before it counts."""
    strict: bool = False
    """Whether a source with wrong CRCs is refused, not only warned of: so if luigi.cfg says `proof = on`."""
    zbi: ToolChoice = "auto"
    """Which program changes ZBIs: the build's, the built-in one, or (auto) the build's if it works, else the built-in.

    A path in luigi.cfg takes the place of the build's program.
    """
    fvm: ToolChoice = "auto"
    """Which program extends disks; chosen in the same way as `zbi`."""


@dataclass(frozen=True)
class QemuSettings:
    """The section `[qemu]`. None in memory, smp and cpu means the guest's default (see pipeline/vm/qemu/profile.py)."""

    accel: Accel = "auto"
    """What runs the guest's CPUs: KVM, QEMU's emulation (tcg), or (auto) KVM if it works."""
    tcg_threads: TcgThreads = "auto"
    """Whether emulated CPUs share one thread (single) or have one each (multi). auto: single if there are several."""
    memory: int | None = None
    """The guest's memory in MiB."""
    smp: int | None = None
    """The number of the guest's CPUs."""
    cpu: str | None = None
    """QEMU's name of the CPU model."""
    restrict: bool = True
    """Whether the guest is kept from reaching anything outside; the host reaches its SSH port all the same."""
    user: str | None = None
    """The user that QEMU, if root starts it, becomes before the guest runs. None: QEMU does not change its user."""
    arguments: tuple[str, ...] = ()
    """Further arguments for QEMU, put last."""


@dataclass(frozen=True)
class Timeouts:
    """Every limit of a boot, in seconds; the defaults suit KVM on a host that is not overloaded."""

    start: float = 15.0
    """The limit for QEMU's own start, until its monitor is there."""
    boot: float = 60.0
    """The limit from QEMU's start until the guest is ready; the default holds while too few boots are known."""
    boot_least: float = 15.0
    """The least value of `boot` when it is derived from this host's past boots."""
    boot_most: float = 300.0
    """The time after which a boot fails, however slow the host's boots have been, and however loaded it is."""
    connect: float = 5.0
    """The limit for one TCP connection with its SSH key exchange."""
    banner: float = 5.0
    """The limit for the SSH server's first line, in one attempt: QEMU accepts connections before the guest listens."""
    auth: float = 10.0
    """The limit for one SSH authentication."""
    command: float = 10.0
    """The limit for the command that proves the guest ready."""
    retry: float = 0.2
    """The pause between two attempts to log in."""
    stop: float = 3.0
    """The limit for stopping an instance, all phases together. It is never scaled: it is a promise to callers."""

    def scaled(self, factor: float) -> "Timeouts":
        """The same limits for a host that is `factor` times slower; `stop` and `retry` stay."""
        longer = {field.name: getattr(self, field.name) * factor for field in fields(self)}
        return replace(self, **longer | {"stop": self.stop, "retry": self.retry})

    def learned(self, slowest: float) -> "Timeouts":
        """The same limits, but `boot` derived from the `slowest` boots of this kind on this host, in seconds."""
        return replace(self, boot=min(self.boot_most, max(self.boot_least, SLACK * slowest)))


TCG_SCALE = 5.0
"""How many times slower than with KVM an emulated guest may boot, at the worst that is still usable."""

SLACK = 5.0
"""How many times as long as this host's slowest boots of the same kind a boot may take."""

DAY = 86400.0
KEEP_LOGS = 7 * DAY
"""Seconds for which the logs of an instance that has ended are kept, unless `topcoat gc --keep` says otherwise."""
KEEP_REPLACED = 30 * DAY
"""Seconds for which units that a merge took out of a corpus are kept."""


@dataclass(frozen=True)
class BootSettings:
    """The section `[boot]`: when a guest counts as ready, and how long that may take."""

    ready: Ready = "ssh"
    """What proves a guest ready: it has run a command over SSH, or it has printed the marker."""
    timeout: float | None = None
    """Seconds from QEMU's start until the guest is ready. None: derived from this host's past boots."""
    scale: float | None = None
    """A factor for all limits of a boot. None: 1 with KVM, TCG_SCALE without."""
    warm: Warm = "auto"
    """Whether guests are made as clones of a template: if there is one (auto), or it is made first (always); never."""
    attempts: int = 1
    """How many times a boot is tried in all if it fails through the guest."""
    log_size: Bytes = 64 << 20
    """Bytes after which a log of a running instance is rotated."""

    def timeouts(self, accel: Literal["kvm", "tcg"], slowest: float | None = None) -> Timeouts:
        """The limits for this host: scaled by `scale`, else by TCG_SCALE without KVM, and learned from past boots.

        `slowest` is the seconds that the slowest of those took, or None if too few are known. The setting `timeout`
        overrides the limits of the whole boot.
        """
        scale = self.scale if self.scale is not None else (TCG_SCALE if accel == "tcg" else 1.0)
        timeouts = Timeouts().scaled(scale)
        if self.timeout is None:
            return timeouts if slowest is None else timeouts.learned(slowest)
        return replace(timeouts, boot=self.timeout, boot_most=self.timeout)


@dataclass(frozen=True)
class PoolSettings:
    """The section `[pool]`: the guests that campaigns share."""

    size: int | None = None
    """How many guests all processes that use the store may run at the same time. None: one for each core."""
    fresh: Fresh = "auto"
    """When a lease gets a new guest: always, after one that went wrong (on_crash), or only if none runs (never).

    auto: always if it is a clone, else on_crash.
    """
    spares: Count = 1
    """How many clones wait for leases, where each lease gets a clone of its own; 0: it waits until that is made."""


@dataclass(frozen=True)
class CampaignSettings:
    """The section `[campaign]`: budgets and limits of a fuzz campaign."""

    budget: Seconds = 600.0
    """Seconds that each fuzzer runs in all."""
    slice: Seconds = 60.0
    """Seconds that a fuzzer runs in one slice."""
    allocation: Allocation = "gain"
    """Which fuzzer gets the next slice: the one that gained most of late, with a floor for each; or all by turns."""
    strikes: int = 3
    """How many failures in a row bench a fuzzer."""
    harvest: Seconds = 30.0
    """Seconds between two times at which the corpus of a running fuzzer is fetched."""
    unit_size: Bytes = 1 << 20
    """The most bytes that a unit may have; a larger file is no unit."""
    corpus_size: Bytes = 1 << 30
    """The most bytes that all units of one fuzzer may have together."""
    corpus_units: int = 50_000
    """The most units that the corpus of one fuzzer may have."""
    tolerance: Share = 0.02
    """The share of the features, 0 to 1, that a merged corpus may lack: some edges come and go by themselves."""
    believed: Share = 0.5
    """A merge that keeps less than this share of the units, 0 to 1, counts only if a newly booted guest confirms it."""
    keep_replaced: Seconds = KEEP_REPLACED
    """Seconds for which units that a merge took out of a corpus are kept."""
    output_size: Bytes = 16 << 20
    """The most bytes of one fuzzer run's output that are kept: half from its beginning, half from its end."""
    crash_size: Bytes = 1 << 30
    """The most bytes that all crash files of a store may have together, but for the first of each bucket."""
    capsule: CapsuleChoice = "off"
    """Which crashes have their guest saved as it was, to be opened again: the first of each bucket, or none."""
    capsule_size: Bytes = 256 << 20
    """The most bytes that such a capsule may have."""
    capsule_count: int = 10
    """The most capsules that there may be in a store; no more are made."""
    canary: Canary = "on"
    """What happens if the canary is not found: the campaign stops (on), or goes on unproved (warn). off: no canary."""
    canary_crash: str = "example-fuzzers/crash_fuzzer"
    """The fuzzer that must be found to crash."""
    canary_clean: str = "example-fuzzers/noop_fuzzer"
    """The fuzzer that must be found not to crash."""


@dataclass(frozen=True)
class NamedTargets:
    """A directory of targets, as a setting or the environment names it."""

    directory: Path
    """Its absolute path."""
    said: str
    """What names it, for people."""


@dataclass(frozen=True)
class Settings:
    """All settings of Topcoat."""

    store: Store
    build_kind: BuildKind
    """Which kind of build to use; "auto" decides by the environment."""
    targets: NamedTargets | None
    """The directory with the targets of a linux build; None if none is named."""
    resources: Mapping[str, Path]
    """The files that take the place of the build's own, by their key in RESOURCE_KEYS."""
    tools: ToolSettings
    qemu: QemuSettings
    boot: BootSettings
    pool: PoolSettings
    campaign: CampaignSettings
    demo_packages: Path | None
    """A directory with the Debian packages of the Linux guest, for machines without apt."""


_SECTIONS = {"qemu": QemuSettings, "boot": BootSettings, "pool": PoolSettings, "campaign": CampaignSettings}
"""The sections that a dataclass describes: each field is a setting, with its type and its default."""

_KEYS: dict[str, tuple[str, ...]] = {
    "store": ("root",),
    "build": ("kind", "targets", *RESOURCE_KEYS),
    "tools": ("timeout", "proof", "zbi", "fvm"),
    "demo": ("packages",),
    **{section: tuple(field.name for field in fields(kind)) for section, kind in _SECTIONS.items()},
}

T = TypeVar("T")


def known_keys() -> Mapping[str, tuple[str, ...]]:
    """The sections of luigi.cfg that are Topcoat's, and the names of the settings in each."""
    return _KEYS


def load(environ: Mapping[str, str] = os.environ, directory: Path | None = None) -> Settings:
    """Read the settings that hold in `directory` (default: the current one). Raises SettingsError."""
    here = (directory or Path.cwd()).absolute()
    reader = Configuration(_KEYS, environ, here)
    named_root = environ.get("TOPCOAT_ROOT")
    root = here / named_root if named_root else reader.path("store", "root") or here / "out"
    overrides = {key: path for key in RESOURCE_KEYS if (path := reader.path("build", key))}
    zbi, fvm = (_tool(reader, name, key, overrides) for name, key in (("zbi", "zbitool"), ("fvm", "fvm")))
    return Settings(
        store=_store(os.path.abspath(root)),
        build_kind=cast(BuildKind, reader.choice("build", "kind", ("auto", "local", "clusterfuzz", "linux", "demo"))),
        targets=_targets(reader, environ, here),
        resources=overrides,
        tools=_tools(reader, zbi, fvm),
        qemu=_section(reader, "qemu", QemuSettings),
        boot=_section(reader, "boot", BootSettings),
        pool=_section(reader, "pool", PoolSettings),
        campaign=_section(reader, "campaign", CampaignSettings),
        demo_packages=reader.path("demo", "packages"),
    )


def _targets(reader: Configuration, environ: Mapping[str, str], here: Path) -> NamedTargets | None:
    if named := environ.get("TOPCOAT_TARGETS"):
        return NamedTargets(Path(os.path.abspath(here / named)), "TOPCOAT_TARGETS")
    path = reader.path("build", "targets")
    return NamedTargets(Path(os.path.abspath(path)), "[build] targets") if path else None


def _store(root: str) -> Store:
    # The path without links is checked too: programs also ask the kernel where they are
    if _CONTROLS.search(root) or _CONTROLS.search(os.path.realpath(root)):
        raise SettingsError(
            f"the store cannot be in a directory with a newline or another control character in its path: {root!r}",
            hint="apt, for one, would wait for ever; move the store: [store] root or TOPCOAT_ROOT",
        )
    return Store(Path(root))


def _tools(reader: Configuration, zbi: ToolChoice, fvm: ToolChoice) -> ToolSettings:
    said = reader.text("tools", "proof") not in (None, "auto")
    proof = reader.switch("tools", "proof", "on") if said else True
    return ToolSettings(reader.number("tools", "timeout") or 600.0, proof, proof and said, zbi, fvm)


def _section(reader: Configuration, section: str, kind: type[T]) -> T:
    """The settings of a section that is described by the dataclass `kind`. What is not set has its default."""
    hints = get_type_hints(kind, include_extras=True)
    given = [name for name in hints if reader.text(section, name) is not None]
    return kind(**{name: _value(reader, section, name, hints[name]) for name in given})


def _value(reader: Configuration, section: str, name: str, hint: Any) -> object:
    """The value of a setting that is set, read as its type says."""
    origin = get_origin(hint)
    if origin is UnionType:  # such as `int | None`
        return _value(reader, section, name, get_args(hint)[0])
    if origin is Literal:
        return reader.choice(section, name, get_args(hint))
    if origin is Annotated:
        read: Callable[[Configuration, str, str], object] = get_args(hint)[1]
        return read(reader, section, name)
    readers: dict[Any, Callable[[str, str], object]] = {
        bool: reader.switch,
        int: reader.whole,
        float: reader.number,
        str: reader.text,
        tuple: reader.words,
    }
    return readers[origin or hint](section, name)


def names_store(environ: Mapping[str, str] = os.environ, directory: Path | None = None) -> bool:
    """Whether the environment or a luigi.cfg says where the store is. Raises SettingsError."""
    here = (directory or Path.cwd()).absolute()
    return bool(environ.get("TOPCOAT_ROOT")) or Configuration(_KEYS, environ, here).text("store", "root") is not None


def _tool(reader: Configuration, name: str, key: str, overrides: dict[str, Path]) -> ToolChoice:
    """The choice that `[tools] NAME` makes. A path is put into `overrides` as the build's program, and chooses that."""
    text = reader.text("tools", name)
    if text in ("auto", "build", "builtin"):
        return cast(ToolChoice, text)
    path = reader.path("tools", name)
    if path is not None:
        overrides[key] = path
    return "build" if key in overrides else "auto"
