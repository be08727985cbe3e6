"""The guests that `undercoat` starts and stops: instances of Topcoat with names of their own.

If neither TOPCOAT_ROOT nor a luigi.cfg names a store, it lies in TMPDIR, like all that the original makes: callers
delete that directory as a whole once no guest runs any more. What has been prepared for one guest serves the next.
"""

import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline import settings
from pipeline.errors import StartFailed, StoreError, UnknownInstance, UsageError
from pipeline.host.faults import host_faults
from pipeline.host.locks import lock_of
from pipeline.host.process import Process
from pipeline.host.stdio import only_telling
from pipeline.store.publish import remove
from pipeline.undercoat.handle import ConnectorPart, HandleFile, LauncherPart, UndercoatHandle
from pipeline.vm.instance import Instance
from pipeline.vm.launcher import KILL_LIMIT
from pipeline.vm.qemu import stopping
from pipeline.vm.qemu.keeper import parts

log = logging.getLogger("topcoat")

_PREFIXES = ("clusterfuchsia-qemu-", "undercoat-")
"""The prefixes of the temporary directories that the original makes, and that a stop deletes."""


def settle_store(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set TOPCOAT_ROOT to a store in TMPDIR, which is made, if nothing else names a store.

    Raises StoreError if others can write to that store, UsageError if TMPDIR is no directory.
    """
    named = environ.get("TMPDIR")
    if named and not Path(named).is_dir():
        raise UsageError(f"TMPDIR={named} is no directory", hint="make it, or unset TMPDIR")
    if settings.names_store(environ):
        return
    root = Path(tempfile.gettempdir()).absolute() / f"undercoat-store-{os.getuid()}"
    with host_faults("making the store"):
        root.mkdir(mode=0o700, exist_ok=True)
        facts = root.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022 or root.is_symlink():
        raise StoreError(
            f"{root} belongs to somebody else, or others may write to it",
            hint="set TMPDIR to a directory of your own, or TOPCOAT_ROOT",
        )
    environ["TOPCOAT_ROOT"] = str(root)


@contextmanager
def started() -> Iterator[HandleFile]:
    """Prepare the images, boot a new guest, and yield its new handle, which the body hands over to the caller.

    What is printed meanwhile goes to stderr. If this or the body fails, the guest is ended, because nobody else knows
    of it. Raises TopcoatError.
    """
    instance = Instance.named(settings.load().store, f"undercoat-{secrets.token_hex(6)}")
    with ExitStack() as undone:
        undone.callback(_end, instance)
        with _stdout_to_stderr():
            _boot(instance)
        file = HandleFile.create(_handle(instance))
        undone.callback(file.release)
        yield file
        undone.pop_all()


def _end(instance: Instance) -> None:
    """End a guest and delete all that belongs to it, also the lock: the random names of `started` are never reused."""
    stopping.stop(instance, KILL_LIMIT)
    if _is_ours(instance.directory):
        shutil.rmtree(instance.directory, ignore_errors=True)
        remove(lock_of(instance.directory))
    else:
        log.warning("%s is neither in the store nor in TMPDIR; it is left there", instance.directory)


def _is_ours(directory: Path) -> bool:
    """Whether a directory is this user's, no link, and below the store or TMPDIR even with all links resolved."""
    places = (os.path.realpath(settings.load().store.root), os.path.realpath(tempfile.gettempdir()))
    real = os.path.realpath(directory)
    within = any(os.path.commonpath((place, real)) == place != real for place in places)
    return within and not directory.is_symlink() and directory.is_dir() and directory.lstat().st_uid == os.geteuid()


def _handle(instance: Instance) -> UndercoatHandle:
    live = instance.require_live()
    directory = instance.directory / "undercoat"
    with host_faults("making a directory for the connection"):
        directory.mkdir(mode=0o700, exist_ok=True)
    return UndercoatHandle(
        ConnectorPart(live.ssh.host, live.ssh.port, live.ssh.key, str(directory)),
        LauncherPart(live.process.pid, str(instance.directory)),
        live.process,
        live.boot_id,
    )


def _boot(instance: Instance) -> None:
    """Run the task that boots. Raises StartFailed with the last error that it logged, for callers who read stdout."""
    errors = _Errors()
    logging.getLogger("topcoat").addHandler(errors)
    status: object = 0
    try:
        from tasks.engine.command import run

        run(["BootInstance", "--name", instance.name])
    except SystemExit as end:
        status = end.code
    finally:
        logging.getLogger("topcoat").removeHandler(errors)
    if status:
        raise StartFailed(errors.last or f"the boot ended with exit code {status}", hint="see its output above")


class _Errors(logging.Handler):
    """A handler that remembers the text of the last error that was logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect to stderr what any program prints during the body, so that stdout has the handle alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with only_telling():
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def stop(file: HandleFile) -> None:
    """End the guest of a handle, if it still runs, and delete all that belongs to it, and the handle.

    Handles that the original has written, or that have only a pid, will do. No process but the guest is signalled.
    Raises BadHandle if there is no such handle, StopError if the guest survives.
    """
    with file.alone():
        handle = file.read()
        instance = instance_of(handle)
        if instance is not None:
            _stop_instance(instance, handle)
        elif handle.launcher.pid:
            _kill(handle)
        for directory in map(Path, {handle.launcher.directory, handle.connector.directory}):
            if directory.name.startswith(_PREFIXES) and _is_ours(directory):
                shutil.rmtree(directory, ignore_errors=True)
        file.release()


def instance_of(handle: UndercoatHandle) -> Instance | None:
    """The instance of a handle, by its directory, or by the pidfile of the QEMU with its pid; None if it has none."""
    for directory in (Path(handle.launcher.directory), _directory_of(handle.launcher.pid)):
        if directory is not None and directory.is_absolute() and directory.parent.name == "instances":
            return Instance(directory.name, directory)
    return None


def _directory_of(pid: int) -> Path | None:
    words = _words(pid)
    if "-pidfile" in words[:-1] and _is_qemu(words):
        return Path(words[words.index("-pidfile") + 1]).parent
    return None


def _words(pid: int) -> list[str]:
    if pid <= 0:
        return []
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return []


def _is_qemu(words: list[str]) -> bool:
    return any(re.search(r"(^|/)qemu(-system-\w+)?$", word) for word in words[:2])


def _stop_instance(instance: Instance, handle: UndercoatHandle) -> None:
    live = instance.live_handle()
    if live and handle.boot_id not in ("", live.boot_id):
        log.warning("%s has been booted anew, which is not the guest of this handle; it is left alone", instance.name)
        return
    _end(instance)


def _kill(handle: UndercoatHandle) -> None:
    """Kill a guest that the original has started. Only its pid is known, so the process must at least be a QEMU."""
    pid, directory = handle.launcher.pid, handle.launcher.directory
    process, words = Process.find(pid), _words(pid)
    if process is None:
        return
    if not _is_qemu(words) or (directory and not any(directory in word for word in words)):
        log.warning("process %d is not the guest of this handle; it is left alone", pid)
        return
    process.send(signal.SIGKILL)
    process.wait(KILL_LIMIT)


def logs(file: HandleFile, output: BinaryIO) -> None:
    """Copy all kept parts of the guest's serial log to `output`, even if the guest has died.

    Raises BadHandle, and UnknownInstance if there is no log.
    """
    handle = file.read()
    handle.require_whole()
    instance = instance_of(handle)
    found = parts(instance.serial_log) if instance else []
    if not found:
        raise UnknownInstance(f"error opening file {handle.launcher.directory}/serial.log", hint="has it been stopped?")
    for part in found:
        with part.open("rb") as stream:
            shutil.copyfileobj(stream, output)
    output.flush()
