"""`topcoat doctor`: examines the host, and says in one line each what is wrong and what to do about it."""

import os
import re
import resource
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.builds import build as builds
from pipeline.builds.build import Build
from pipeline.builds.prepare import DISK_LENGTH
from pipeline.builds.programs import settle
from pipeline.errors import MissingResource, ToolTimeout, TopcoatError
from pipeline.fuzz.corpus import CorpusLimits
from pipeline.host.faults import host_faults
from pipeline.host.resources import NOEXEC_HINT, free_bytes, is_noexec
from pipeline.host.tools import Tool, run
from pipeline.settings import Settings, Store
from pipeline.store.digest_cache import DigestCache
from pipeline.text.printable import one_line, tail
from pipeline.text.quantity import parse_size, readable_size
from pipeline.upkeep import findings, gc
from pipeline.upkeep.findings import Finding, Level
from pipeline.vm.instance import Instance
from pipeline.vm.qemu import accel, growth
from pipeline.vm.qemu.profile import guest_of
from pipeline.vm.qemu.user import require_user
from pipeline.vm.sockets import require_sockets

__all__ = ["Finding", "Level", "examine"]

_VERSION_LIMIT = 10.0
_OLDEST_QEMU = (5, 0)


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything that a boot needs of the host. Changes nothing but the caches about KVM and the tools.

    What cannot be looked at is a finding too. Takes less than a second, but up to 10 s for each program that hangs.
    """
    build: Build | None = None
    try:
        build = settle(builds.load(settings), settings, DigestCache(None).of)
    except TopcoatError as error:
        yield _failure("build", error)
    of_build = _of_build(settings, build) if build else {}
    for name, check in {**of_build, **_of_host(settings, build)}.items():
        yield from _safely(name, check)


Check = Callable[[], Iterable[Finding]]


def _of_build(settings: Settings, build: Build) -> dict[str, Check]:
    return {
        "build": partial(_resources, build),
        "QEMU": partial(_qemu, build),
        "qemu-img": partial(_qemu_img, build),
        "KVM": partial(_kvm, settings, build),
        "memory": partial(_memory, settings, build),
    }


def _of_host(settings: Settings, build: Build | None) -> dict[str, Check]:
    store = settings.store
    return {
        "setsid": _setsid,
        "user": partial(_user, settings),
        "store": partial(_store, store, build),
        "space": partial(_space, settings, build),
        "sockets": partial(_sockets, store),
        "open files": _open_files,
        "processes": _processes,
        "load": _load,
        "instances": partial(_instances, store),
        "leftovers": partial(_leftovers, settings),
    }


def _safely(name: str, check: Check) -> list[Finding]:
    try:
        with host_faults("looking at it"):
            return list(check())
    except TopcoatError as error:
        return [_failure(name, error)]


def _failure(name: str, error: TopcoatError) -> Finding:
    message, reason = " ".join(error.message.splitlines()), tail(error.detail, 1)
    return Finding(name, "error", f"{message}: {reason}" if reason else message, error.hint)


def _resources(build: Build) -> Iterator[Finding]:
    missing = list(_missing(build))
    yield from missing or [Finding("build", "ok", f"{build.name} ({build.why})")]
    for key, why in build.own_why.items():
        yield Finding(
            key, "warning", f"Topcoat's own: {why}", f"to choose yourself: [tools] {key.removesuffix('tool')}"
        )


def _missing(build: Build) -> Iterator[Finding]:
    for key in ("zbi", "blk", "kernel", "zbitool", "fvm"):
        try:
            build.require(key)
        except MissingResource as error:
            yield _failure("build", error)
    if build.targets and not build.targets.source.is_dir():
        text = f"the directory of targets is not there: {one_line(str(build.targets.source))}"
        yield Finding("build", "error", text, "name the one that holds them: TOPCOAT_TARGETS, or [build] targets")


def _qemu(build: Build) -> Iterator[Finding]:
    said = _version(build, "qemu")
    match = re.search(r"version (\d+)\.(\d+)", said)
    text = f"{match[1]}.{match[2]} ({build.path('qemu')})" if match else f"it does not say its version: {said}"
    newer = "use a newer one: [build] qemu = PATH"
    if match is None:
        yield Finding("QEMU", "warning", text, f"is it QEMU? {newer}")
    elif (int(match[1]), int(match[2])) < _OLDEST_QEMU:
        yield Finding("QEMU", "warning", f"{text} is older than {'.'.join(map(str, _OLDEST_QEMU))}", newer)
    else:
        yield Finding("QEMU", "ok", text)


def _qemu_img(build: Build) -> Iterator[Finding]:
    yield Finding("qemu-img", "ok", _version(build, "qemu-img"))


def _version(build: Build, key: str) -> str:
    build.require(key)
    try:
        said = run(Tool.at(key, build.path(key)), "--version", timeout=_VERSION_LIMIT)
    except ToolTimeout as error:
        error.hint = f"is the host overloaded? is it the right program? [build] {key} = PATH names another one"
        raise
    return tail(said.partition("\n")[0], 1)


def _setsid() -> Iterator[Finding]:
    found = Tool.in_path("setsid", hint="install it (apt-get install util-linux)")
    yield Finding("setsid", "ok", found.argv[0])


def _user(settings: Settings) -> Iterator[Finding]:
    require_user(settings.qemu.user)
    yield findings.user(os.geteuid(), settings.qemu.user)


def _kvm(settings: Settings, build: Build) -> Iterator[Finding]:
    wanted = settings.qemu.accel
    chosen, why = accel.choose(wanted, build.arch, build.path("qemu"), settings.store.cache / "kvm.json")
    if chosen == "kvm":
        yield Finding("KVM", "ok", "it works")
    elif wanted == "tcg":
        yield Finding("KVM", "ok", "it is not wanted ([qemu] accel = tcg)")
    else:
        hint = "guests work all the same; without this warning: [qemu] accel = tcg"
        yield Finding("KVM", "warning", f"guests are emulated, several times slower: {why}", hint)


def _memory(settings: Settings, build: Build) -> Iterator[Finding]:
    need = settings.qemu.memory or guest_of(build, "i0", "").memory
    yield findings.memory(_said("/proc/meminfo"), need)


def _store(store: Store, build: Build | None) -> Iterator[Finding]:
    store.require_writable()
    if build and build.targets and is_noexec(_there(store)):
        text = f"{store.root}: no program can be run from its file system (noexec), nor the Linux guest's compiler"
        yield Finding("store", "error", text, NOEXEC_HINT)
    elif store.root.exists() and (rights := store.root.stat().st_mode & 0o077):
        text = f"{store.root}: others may {'write to' if rights & 0o022 else 'look into'} it"
        yield Finding("store", "warning", text, f"chmod 700 {shlex.quote(str(store.root))}")
    else:
        yield Finding("store", "ok", str(store.root))


def _there(store: Store) -> Path:
    """The store's directory, or the nearest one above it that exists."""
    return next(path for path in (store.root, *store.root.parents) if path.exists())


def _space(settings: Settings, build: Build | None) -> Iterator[Finding]:
    could_write = growth.of_running(settings.store, settings.boot.log_size)
    yield findings.space(free_bytes(_there(settings.store)), _images(build), could_write)


def _images(build: Build | None) -> int:
    """Bytes that the images of the build are expected to take."""
    if build:
        with suppress(FileNotFoundError, NotADirectoryError):  # not made yet
            return build.path("blk").stat().st_blocks * 512
    return parse_size(DISK_LENGTH)


def _sockets(store: Store) -> Iterator[Finding]:
    require_sockets(_there(store))
    yield Finding("sockets", "ok", "the store's file system can hold them")


def _open_files() -> Iterator[Finding]:
    yield findings.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _processes() -> Iterator[Finding]:
    # the limit does not hold for root
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0] if os.getuid() else resource.RLIM_INFINITY
    yield findings.processes(soft, sum(map(_threads, Path("/proc").glob("[0-9]*"))))


def _threads(process: Path) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return len(list((process / "task").iterdir())) if process.stat().st_uid == os.getuid() else 0
    return 0


def _load() -> Iterator[Finding]:
    yield findings.load(_said("/proc/loadavg"), _said("/proc/pressure/cpu"), len(os.sched_getaffinity(0)))


def _said(path: str) -> str:
    """The content of a file such as /proc/meminfo; empty if this kernel does not have it."""
    with suppress(OSError):
        return Path(path).read_text()
    return ""


def _instances(store: Store) -> Iterator[Finding]:
    states = {instance.name: instance.state() for instance in Instance.all(store)}
    broken = [name for name, state in states.items() if state == "broken"]
    for name in (name for name, state in states.items() if state == "halted"):
        hint = f"topcoat logs {name}; topcoat stop {name}"
        yield Finding("instances", "warning", f"{name} runs, but its kernel has halted", hint)
    for name in broken:
        yield Finding("instances", "error", f"{name} is broken: its handle cannot be used", f"topcoat stop {name}")
    if not broken:
        running = sum(state == "running" for state in states.values())
        yield Finding("instances", "ok", f"{len(states)} known, {running} running")


def _leftovers(settings: Settings) -> Iterator[Finding]:
    found = gc.items(settings.store, limits=CorpusLimits.of(settings.campaign))
    if found:
        text = f"{len(found)} things are nobody's, with {readable_size(sum(item.bytes for item in found))}"
        yield Finding("leftovers", "warning", text, "topcoat gc")
    else:
        yield Finding("leftovers", "ok", "none")
