"""Commands about the fuzzers of a running guest and their files. No connection outlives a call."""

import logging
import os
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

from pipeline import settings
from pipeline.builds import build
from pipeline.builds.build import Build
from pipeline.errors import TopcoatError, UnknownInstance, UsageError
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.fuzz.targets import FuzzTargets
from pipeline.host.faults import host_faults
from pipeline.ssh.address import Address
from pipeline.ssh.connector import Connector
from pipeline.store.digest_cache import DigestCache
from pipeline.text import goglob
from pipeline.text.printable import one_line
from pipeline.undercoat import guest
from pipeline.undercoat.handle import HandleFile, UndercoatHandle
from pipeline.vm.handle import DISK
from pipeline.vm.qemu.profile import USER

log = logging.getLogger("topcoat")


def fuzzers(file: HandleFile) -> list[str]:
    """The full names of the build's fuzzers, sorted, without most of Fuchsia's examples. The guest is not asked."""
    return [target.full_name for target in FuzzTargets.of(_build(_whole(file))).listed]


def prepare(file: HandleFile, name: str) -> None:
    """Prepare a fuzzer, which ends its processes and deletes all its data; needed before anything else."""
    with _fuzzer(file, name) as (fuzzer, connector):
        fuzzer.prepare(connector)


def run(file: HandleFile, name: str, words: Sequence[str], output: BinaryIO, artifacts: Path | None) -> None:
    """Run a fuzzer with libFuzzer's arguments; its output goes to `output`, its artifacts to the directory `artifacts`.

    If `artifacts` is None, the artifacts stay in the guest; if it is no directory, raises UsageError before the run.
    """
    if artifacts is not None and not artifacts.is_dir():
        raise UsageError(f"the artifact directory {artifacts} is not there", hint="make it first")
    with _fuzzer(file, name) as (fuzzer, connector):
        found = fuzzer.run(connector, [*fuzzer.own_flags(), *words], output, artifacts)
        if artifacts is not None:
            for path in found:
                connector.get(goglob.literal(path), artifacts)  # the guest chooses these names
                _compare(artifacts / posixpath.basename(path))


def _compare(artifact: Path) -> None:
    """Warn about an artifact whose content does not fit the digest in its name: it would reproduce no crash."""
    from pipeline.fuzz.crashes.artifacts import is_whole

    with host_faults("reading an artifact"):
        whole = not artifact.is_file() or is_whole(artifact.name, artifact.read_bytes())
    if not whole:
        log.warning("%s is not what its name says: is the guest's disk full?", one_line(str(artifact)))


def get(file: HandleFile, name: str, source: str, target: Path) -> None:
    """Copy what matches `source` in the guest, such as data/corpus/*, into the directory `target` of the host."""
    with _fuzzer(file, name) as (fuzzer, connector):
        fuzzer.get(connector, source, target)


def put(file: HandleFile, name: str, source: str, target: str) -> None:
    """Copy what matches `source` on the host into the directory `target` of the guest, such as data/corpus."""
    with _fuzzer(file, name) as (fuzzer, connector):
        fuzzer.put(connector, source, target)


def _whole(file: HandleFile) -> UndercoatHandle:
    handle = file.read()
    handle.require_whole()
    return handle


def _build(handle: UndercoatHandle) -> Build:
    """The build that the environment names, looked up with the store in which the guest's instance is."""
    instance = guest.instance_of(handle)
    store = {} if instance is None else {"TOPCOAT_ROOT": str(instance.directory.parents[1])}
    chosen = settings.load({**os.environ, **store})
    live = instance.live_handle() if instance else None
    disk = live.made_of.inputs.get(DISK) if live else None
    return build.load(chosen).as_booted(disk, DigestCache(chosen.store.digests).of)


@contextmanager
def _fuzzer(file: HandleFile, name: str) -> Iterator[tuple[Fuzzer, Connector]]:
    handle = _whole(file)
    fuzzer = Fuzzer.of(_build(handle), name)
    connector = _connector(handle)
    try:
        yield fuzzer, connector
    except TopcoatError as error:
        if instance := guest.instance_of(handle):
            error.hinting_at(instance.name)
        raise
    finally:
        connector.close()


def _connector(handle: UndercoatHandle) -> Connector:
    """The connector to the guest. One that Topcoat has started must still run the boot of the handle.

    Raises UnknownInstance if it does not, and what `Instance.require_running` raises.
    """
    instance, told = guest.instance_of(handle), handle.connector
    if instance is None:
        address, accel = Address(told.host, told.port, USER, told.key, None), "kvm"
    else:
        live = instance.require_running()
        if handle.boot_id not in ("", live.boot_id):
            raise UnknownInstance(
                f"the guest of this handle has ended; {instance.name} is another boot", hint="start a new instance"
            )
        address, accel = live.ssh, live.accelerator
    timeouts = settings.load().boot.timeouts(cast(Literal["kvm", "tcg"], accel))
    return Connector(address, timeouts, temporary=Path(told.directory))
