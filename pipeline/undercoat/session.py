"""What is done with a running guest: its fuzzers, and the files of these. Each call connects and disconnects."""

import logging
import os
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

from pipeline import build, goglob, settings
from pipeline.build import Build
from pipeline.errors import TopcoatError, UnknownInstance, UsageError
from pipeline.faults import host_faults
from pipeline.fuzz_targets import FuzzTargets
from pipeline.fuzzer import Fuzzer
from pipeline.instance import SSH
from pipeline.qemu.guest import USER
from pipeline.ssh import Connector
from pipeline.text import one_line
from pipeline.undercoat import guest
from pipeline.undercoat.handle import Handle, HandleFile

log = logging.getLogger("topcoat")


def fuzzers(file: HandleFile) -> list[str]:
    """The full names of the build's fuzzers, sorted, without most of Fuchsia's examples. The guest is not asked."""
    return [target.full_name for target in FuzzTargets.of(_build(_whole(file))).listed]


def prepare(file: HandleFile, name: str) -> None:
    """Make a fuzzer ready to run: needed before anything else, and again to delete all its data."""
    with _fuzzer(file, name) as (fuzzer, connector):
        fuzzer.prepare(connector)


def run(file: HandleFile, name: str, words: Sequence[str], output: BinaryIO, artifacts: Path | None) -> None:
    """Run a fuzzer with libFuzzer's arguments; its output goes to `output`, what it finds to the directory `artifacts`.

    Raises UsageError before anything runs if there is no such directory.
    """
    if artifacts is not None and not artifacts.is_dir():
        raise UsageError(f"the artifact directory {artifacts} is not there", hint="make it first")
    with _fuzzer(file, name) as (fuzzer, connector):
        found = fuzzer.run(connector, words, output, artifacts)
        if artifacts is not None:
            for path in found:
                connector.get(goglob.literal(path), artifacts)  # the guest chooses their names
                _compare(artifacts / posixpath.basename(path))


def _compare(artifact: Path) -> None:
    """Warn of an artifact that is not what its name says: nothing crashes with it."""
    from pipeline.crashes.artifacts import is_whole

    with host_faults("reading an artifact"):
        whole = not artifact.is_file() or is_whole(artifact.name, artifact.read_bytes())
    if not whole:
        log.warning("%s is not what its name says: is the guest's disk full?", one_line(str(artifact)))


def get(file: HandleFile, name: str, source: str, target: Path) -> None:
    """Copy what matches `source`, a path as the fuzzer's users have it, to the directory `target` of the host."""
    with _fuzzer(file, name) as (fuzzer, connector):
        fuzzer.get(connector, source, target)


def put(file: HandleFile, name: str, source: str, target: str) -> None:
    """Copy what matches `source` on the host to the directory `target`, a path as the fuzzer's users have it."""
    with _fuzzer(file, name) as (fuzzer, connector):
        fuzzer.put(connector, source, target)


def _whole(file: HandleFile) -> Handle:
    handle = file.read()
    handle.require_whole()
    return handle


def _build(handle: Handle) -> Build:
    """The build that the environment names, with the store in which the guest is."""
    instance = guest.instance_of(handle)
    if instance is not None:
        os.environ["TOPCOAT_ROOT"] = str(instance.directory.parents[1])
    return build.load(settings.load())


@contextmanager
def _fuzzer(file: HandleFile, name: str) -> Iterator[tuple[Fuzzer, Connector]]:
    handle = _whole(file)
    fuzzer = Fuzzer.of(_build(handle), name)
    connector = _connector(handle)
    try:
        yield fuzzer, connector
    except TopcoatError as error:
        if instance := guest.instance_of(handle):
            error.hint = error.hint.replace("NAME", instance.name)
        raise
    finally:
        connector.close()


def _connector(handle: Handle) -> Connector:
    """The way into the guest. Of one that Topcoat has started, it must be that very boot, with its host key."""
    instance, told = guest.instance_of(handle), handle.connector
    if instance is None:
        address, accel = SSH(told.host, told.port, USER, told.key, None), "kvm"
    else:
        live = instance.require_running()
        if handle.boot_id not in ("", live.boot_id):
            raise UnknownInstance(
                f"the guest of this handle has ended; {instance.name} is another boot", hint="start a new instance"
            )
        address, accel = live.ssh, "kvm" if "-enable-kvm" in live.argv else "tcg"
    timeouts = settings.load().boot.timeouts(cast(Literal["kvm", "tcg"], accel))
    return Connector(address, timeouts, temporary=Path(told.directory))
