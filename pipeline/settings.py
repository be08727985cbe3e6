"""What luigi.cfg and the environment say, as frozen values.

The luigi.cfg at the top of the project lists every setting with its default; pipeline/configuration.py says which files
are read, and how.
"""

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, cast

from pipeline.configuration import Configuration
from pipeline.errors import SettingsError
from pipeline.faults import host_faults

BuildKind = Literal["auto", "local", "clusterfuzz", "demo"]
Accel = Literal["auto", "kvm", "tcg"]
TcgThreads = Literal["auto", "single", "multi"]
Ready = Literal["ssh", "marker"]
ToolChoice = Literal["auto", "build", "builtin"]
Fresh = Literal["on_crash", "always", "never"]
Allocation = Literal["gain", "even"]
Canary = Literal["on", "warn", "off"]

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

_CONTROLS = re.compile(r"[\x00-\x08\n-\x1f\x7f]")

_KEYS: dict[str, tuple[str, ...]] = {
    "store": ("root",),
    "build": ("kind", *RESOURCE_KEYS),
    "tools": ("timeout", "proof", "zbi", "fvm"),
    "qemu": ("accel", "tcg_threads", "memory", "smp", "cpu", "restrict", "arguments"),
    "boot": ("ready", "timeout", "scale", "attempts", "log_size"),
    "demo": ("packages",),
    "pool": ("size", "fresh"),
    "campaign": (
        *("budget", "slice", "allocation", "strikes", "harvest", "unit_size", "corpus_size", "corpus_units"),
        *("tolerance", "output_size", "crash_size", "canary", "canary_crash", "canary_clean"),
    ),
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
    def campaigns(self) -> Path:
        """The directory with one directory for each campaign."""
        return self.root / "campaigns"

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
    strict: bool = False
    """A source whose own CRCs are wrong is refused, not only warned of: `proof = on` was said."""
    zbi: ToolChoice = "auto"
    """auto: the build's program if it works, else Topcoat's own; a path in luigi.cfg becomes the build's."""
    fvm: ToolChoice = "auto"


@dataclass(frozen=True)
class Qemu:
    """`[qemu]`. None: the default of the guest (see pipeline/qemu/command.py)."""

    accel: Accel = "auto"
    tcg_threads: TcgThreads = "auto"
    """Without KVM, the CPUs of a guest run by turns in one thread, or each in its own. auto: by turns, if several."""
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

DAY = 86400.0
KEEP_LOGS = 7 * DAY
"""Seconds for which the logs of an instance that has ended are kept, unless `topcoat gc --keep` says otherwise."""


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
class Pool:
    """`[pool]`"""

    size: int | None = None
    """Guests that run at the same time, of all processes that use the store. None: one for each core."""
    fresh: Fresh = "on_crash"
    """When a lease boots: always; after one that went wrong; or only where no guest lives."""


@dataclass(frozen=True)
class Campaign:
    """`[campaign]`"""

    budget: float = 600.0
    """Seconds that each fuzzer runs in all."""
    slice: float = 60.0
    """Seconds of one slice."""
    allocation: Allocation = "gain"
    """Who gets the next slice: whoever gained most of late, with a floor for each; or all by turns."""
    strikes: int = 3
    """So many failures in a row, and a fuzzer is benched."""
    harvest: float = 30.0
    """Seconds between two times at which the corpus of a fuzzer that runs is fetched."""
    unit_size: int = 1 << 20
    """Bytes; what is larger is no unit."""
    corpus_size: int = 1 << 30
    """Bytes of all units of one fuzzer."""
    corpus_units: int = 50_000
    tolerance: float = 0.02
    """The part of the features that a merged corpus may lack: some edges come and go."""
    output_size: int = 16 << 20
    """Bytes of one fuzzer run's output that are kept: half from its beginning, half from its end."""
    crash_size: int = 1 << 30
    """Bytes of all files of a campaign's crashes."""
    canary: Canary = "on"
    """on: a campaign whose canary is not found stops. warn: it goes on, unproven. off: there is no canary."""
    canary_crash: str = "example-fuzzers/crash_fuzzer"
    """The fuzzer that must be found to crash."""
    canary_clean: str = "example-fuzzers/noop_fuzzer"
    """The fuzzer that must be found not to."""


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
    pool: Pool
    campaign: Campaign
    demo_packages: Path | None
    """A directory with the Debian packages of the demo guest, for machines without apt."""


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
        build_kind=cast(BuildKind, reader.choice("build", "kind", ("auto", "local", "clusterfuzz", "demo"))),
        resources=overrides,
        tools=_tools(reader, zbi, fvm),
        qemu=Qemu(
            accel=cast(Accel, reader.choice("qemu", "accel", ("auto", "kvm", "tcg"))),
            tcg_threads=cast(TcgThreads, reader.choice("qemu", "tcg_threads", ("auto", "single", "multi"))),
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
        pool=Pool(
            size=reader.whole("pool", "size"),
            fresh=cast(Fresh, reader.choice("pool", "fresh", ("on_crash", "always", "never"))),
        ),
        campaign=_campaign(reader),
        demo_packages=reader.path("demo", "packages"),
    )


def _store(root: str) -> Store:
    # By links too: programs also ask the kernel where they are
    if _CONTROLS.search(root) or _CONTROLS.search(os.path.realpath(root)):
        raise SettingsError(
            f"the store cannot be in a directory with a newline or another control character in its path: {root!r}",
            hint="apt, for one, would wait for ever; move the store: [store] root or TOPCOAT_ROOT",
        )
    return Store(Path(root))


def _tools(reader: Configuration, zbi: ToolChoice, fvm: ToolChoice) -> Tools:
    said = reader.text("tools", "proof") not in (None, "auto")
    proof = reader.switch("tools", "proof", "on") if said else True
    return Tools(reader.number("tools", "timeout") or 600.0, proof, proof and said, zbi, fvm)


def _campaign(reader: Configuration) -> Campaign:
    section, default = "campaign", Campaign()
    tolerance = reader.fraction(section, "tolerance")
    return Campaign(
        budget=reader.duration(section, "budget") or default.budget,
        slice=reader.duration(section, "slice") or default.slice,
        allocation=cast(Allocation, reader.choice(section, "allocation", ("gain", "even"))),
        strikes=reader.whole(section, "strikes") or default.strikes,
        harvest=reader.duration(section, "harvest") or default.harvest,
        unit_size=reader.size(section, "unit_size") or default.unit_size,
        corpus_size=reader.size(section, "corpus_size") or default.corpus_size,
        corpus_units=reader.whole(section, "corpus_units") or default.corpus_units,
        tolerance=default.tolerance if tolerance is None else tolerance,
        output_size=reader.size(section, "output_size") or default.output_size,
        crash_size=reader.size(section, "crash_size") or default.crash_size,
        canary=cast(Canary, reader.choice(section, "canary", ("on", "warn", "off"))),
        canary_crash=reader.text(section, "canary_crash") or default.canary_crash,
        canary_clean=reader.text(section, "canary_clean") or default.canary_clean,
    )


def names_store(environ: Mapping[str, str] = os.environ, directory: Path | None = None) -> bool:
    """Whether the environment or a luigi.cfg says where the store is. Raises SettingsError."""
    here = (directory or Path.cwd()).absolute()
    return bool(environ.get("TOPCOAT_ROOT")) or Configuration(_KEYS, environ, here).text("store", "root") is not None


def _tool(reader: Configuration, name: str, key: str, overrides: dict[str, Path]) -> ToolChoice:
    """What `[tools] NAME` says. A path takes the place of the build's program, and is then the one to use."""
    text = reader.text("tools", name)
    if text in ("auto", "build", "builtin"):
        return cast(ToolChoice, text)
    path = reader.path("tools", name)
    if path is not None:
        overrides[key] = path
    return "build" if key in overrides else "auto"
