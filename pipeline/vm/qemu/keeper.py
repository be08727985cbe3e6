"""The keeper: a small process that stays with one QEMU until that has ended, with three duties.

It keeps the logs short. QEMU writes on for days after the process that booted it has ended, and a hostile guest writes
without end. Once a second, a log longer than its cap is rotated (see `rotate`), so each of its two files takes at most
the cap and what the guest writes in a second.

It ends an orphan. If the process that boots QEMU, its owner, ends for whatever reason before the instance's handle says
that this boot is done, nobody would find this QEMU again: it gets SIGTERM, and SIGKILL a second later. If there is a
handle that cannot be read or understood, QEMU is left alone, for somebody may claim it.

It ends a QEMU that is tied to a file (pipeline/vm/keepalive.py) once nobody has had that file locked for the grace: the
users of this QEMU have ended without ending it. While the keeper ends QEMU it has the file locked itself, so that no
new user takes QEMU for one that stays. A file that is gone counts as not locked; if it cannot be read, QEMU runs on
untied.

The module is a program too; `start` runs it in the background::

    keeper.py HANDLE BOOT_ID CAP KEEPALIVE GRACE QEMU_PID QEMU_START OWNER_PID OWNER_START LOG...

CAP is in bytes; KEEPALIVE is a path relative to the directory of the handle, or empty; GRACE is in seconds; QEMU_START
and OWNER_START are in clock ticks since the host booted.

The program has a session of its own and works in the directory of the handle: by relative names it finds its files even
when the store has been moved. It holds two pidfds, and its stdout and stderr are QEMU's log, where it says what goes
wrong. A keeper that is killed is not replaced: QEMU runs on without it.
"""
# pathlib would double the time that a keeper takes to start, and each guest has one:
# ruff: noqa: PTH105, PTH108, PTH116

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys

TYPE_CHECKING = False  # importing typing for it would take as long as pathlib
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.host.process import Process
    from pipeline.vm.keepalive import KeepAlive

_PERIOD = 1000  # milliseconds
_PATIENCE = 1000  # milliseconds from SIGTERM to SIGKILL
_CHUNK = 1 << 20
_SETSID_LIMIT = 5.0  # seconds; it forks at once
_START_TIME = 22  # see pipeline/host/process.py
_FLOCK = "hhqqi4x"  # see pipeline/host/locks.py


def rotate(log: Path | str, cap: int) -> bool:
    """If `log` is longer than `cap` bytes, move its content to `<log>.1`, in place of what was there.

    The file itself stays, because its writer holds it open; the writer must have opened it to append. Returns whether
    the log was rotated: not if it is short, is missing, or is being rotated by another process.

    `<log>.1` appears whole or not at all, readable by its owner only. What is written during the copying is copied too,
    until nothing is new; then the log is truncated at once. What the writer adds between these two system calls is
    lost: as a rule nothing or one write, at most what it writes in a few milliseconds. (Taking the first blocks out of
    the file would lose nothing, but only ext4 and xfs can do that, and they hold up QEMU while they write the log to
    the disk.) If the writer is as fast as the copying, that ends when twice the length of the log has been copied; then
    more is lost. If the copy cannot be made, for example on a full disk, the log is truncated all the same, because its
    length is what counts. Both cases are reported on stderr.

    Raises OSError if the log cannot be truncated.
    """
    try:
        if os.stat(log).st_size <= cap:
            return False
        source = os.open(log, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return _rotate(source, os.fspath(log), cap)
    finally:
        os.close(source)


def _rotate(source: int, log: str, cap: int) -> bool:
    try:
        fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False  # another process is rotating it
    length = os.fstat(source).st_size
    if length <= cap:
        return False
    try:
        _move(source, f"{log}.1", 2 * length)
    except OSError as error:
        os.ftruncate(source, 0)
        _say(f"{log}: {length} bytes were cut off, and not all of them could be kept: {error.strerror}")
        _remove(f"{log}.1.tmp")
    return True


def _move(source: int, kept: str, limit: int) -> None:
    _remove(kept)  # before the copying, so that a log never takes three times its cap
    target = os.open(f"{kept}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        copied = _copy(source, target, 0, limit)
        os.replace(f"{kept}.tmp", kept)
        # As little as possible may come between the end of this and the truncation: it would cost bytes
        copied = _copy(source, target, copied, limit)
        os.ftruncate(source, 0)
    finally:
        os.close(target)
    if copied == limit:
        _say(f"{kept}: a part is missing after it: the guest writes faster than it can be copied")


def _copy(source: int, target: int, done: int, limit: int) -> int:
    """Copy the bytes from position `done` to the end, or to `limit`. Returns the position that was reached."""
    while done < limit and (count := os.sendfile(target, source, done, min(_CHUNK, limit - done))):
        done += count
    return done


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _say(text: str) -> None:
    try:
        os.write(2, f"topcoat: {text}\n".encode(errors="surrogateescape"))
    except OSError:  # on a full disk there is nowhere to say it, and the keeper goes on
        return


def parts(log: Path) -> list[Path]:
    """The existing files of one log, the older first: `<log>.1` and the log itself."""
    return [path for path in (log.with_name(f"{log.name}.1"), log) if path.exists()]


def start(
    qemu: Process,
    owner: Process,
    boot_id: str,
    handle_file: Path,
    logs: Sequence[Path],
    cap: int,
    errors: Path,
    keepalive: KeepAlive | None = None,
) -> None:
    """Start a keeper in the background, which lives as long as `qemu`.

    `owner` is the process that boots `qemu` and, before it ends, writes `handle_file` with `boot_id` in it. Each of
    `logs` is kept to `cap` bytes, checked once a second. What the keeper has to say is appended to `errors`, which may
    be one of the logs. With `keepalive`, QEMU outlives its users for no longer than the grace. Returns as soon as the
    keeper has its own session, before it is at work; it also notices if a process has ended before that.

    Raises HostFault if the keeper cannot be started, StoreError if `errors` cannot be written.
    """
    import subprocess

    from pipeline.errors import HostFault
    from pipeline.host import interrupt
    from pipeline.host.faults import host_faults
    from pipeline.vm.qemu import environment

    kept_alive = (_from(handle_file.parent, keepalive.file), str(keepalive.grace)) if keepalive else ("", "0")
    numbers = (qemu.pid, qemu.start_ticks, owner.pid, owner.start_ticks)
    places = (str(log.absolute()) for log in logs)
    words = (str(handle_file.absolute()), boot_id, str(cap), *kept_alive, *map(str, numbers), *places)
    # Isolated and without site-packages: that starts fastest, and ignores the user's Python settings
    command = ("setsid", "--fork", sys.executable, "-I", "-S", os.path.abspath(__file__), *words)
    with host_faults("writing QEMU's log"):
        output = errors.open("ab")
    with output:
        try:
            with interrupt.deferred():
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=handle_file.parent,
                    env=environment.of_qemu(),
                    timeout=_SETSID_LIMIT,
                    check=True,
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise HostFault(
                f"the keeper of QEMU's logs cannot be started: {error}",
                stage="keeper",
                cause="no keeper",
                hint="is the program setsid (package util-linux) there?",
            ) from error


def _from(directory: Path, file: Path) -> str:
    """The path of `file` from `directory`, which stays right when both are moved together.

    Links are resolved first, as `..` goes up from where they lead.
    """
    return os.path.relpath(os.path.realpath(file), os.path.realpath(directory))


def main(argv: Sequence[str]) -> None:
    """Do the keeper's duties until QEMU has ended. The module's documentation shows the arguments, `argv[1:]`."""
    whole, boot_id, cap, kept_alive, grace, *numbers = argv[1:10]
    place, handle_file = os.path.split(whole)
    logs, limit = [os.path.relpath(log, place) for log in argv[10:]], int(cap)
    qemu, owner = (_pidfd(int(pid), int(start)) for pid, start in (numbers[:2], numbers[2:]))
    if qemu is not None:
        keepalive = _KeepAlive(kept_alive, float(grace), qemu)
        if owner is not None:
            _keep(logs, limit, keepalive, qemu, owner)
            os.close(owner)
        # Checked only now, as the owner may have written the handle just before it ended
        if not _ended(0, qemu) and not _claimed(handle_file, boot_id):
            _end(qemu, "the process that booted this QEMU has ended before the guest was ready, so QEMU is ended too")
        _keep(logs, limit, keepalive, qemu)
    _tidy(logs, limit)


def _pidfd(pid: int, start_ticks: int) -> int | None:
    """A pidfd of the process with this pid and start time, or None if it has ended; see Process.descriptor.

    Importing Process would make the keeper more than twice as slow to start, and a third larger. The boot of the host
    need not be compared: it is the same as the starter's.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            fields = stream.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        fields = []
    if fields and int(fields[_START_TIME - 3]) == start_ticks:
        return pidfd
    os.close(pidfd)
    return None


def _keep(logs: Sequence[str], cap: int, keepalive: _KeepAlive, *pidfds: int) -> None:
    """Look after the logs and the keepalive until one of the processes (`pidfds`) has ended."""
    _tidy(logs, cap)
    while not _ended(_PERIOD, *pidfds):
        _tidy(logs, cap)
        keepalive.look()


class _KeepAlive:
    """The file at `path`, which the users of `qemu` keep locked; with an empty path, QEMU is not tied."""

    def __init__(self, path: str, grace: float, qemu: int) -> None:
        self._path, self._grace, self._qemu = path, grace, qemu
        self._unused = 0  # counts periods, not time: a keeper that got no CPU for an hour has not looked for an hour

    def look(self) -> None:
        """Check whether QEMU is still used, and end it after the grace; must be called once in each period."""
        try:
            if self._path and self._is_over():
                self._path = ""
        except OSError as error:
            _say(f"QEMU runs on whether it is used or not: {self._path}: {error.strerror}")
            self._path = ""

    def _is_over(self) -> bool:
        """Count this period if nobody has the file locked; after the grace, end QEMU. Returns whether it was ended."""
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return self._unused_for_long() and self._end()
        try:
            if _lock(file, fcntl.F_OFD_GETLK) == fcntl.F_RDLCK:
                self._unused = 0
                return False
            if not self._unused_for_long():
                return False
            _lock(file, fcntl.F_OFD_SETLK)
            return self._end()
        except BlockingIOError:
            return False  # a user has come, or another keeper has the lock
        finally:
            os.close(file)

    def _unused_for_long(self) -> bool:
        self._unused += 1
        return self._unused * _PERIOD > self._grace * 1000

    def _end(self) -> bool:
        _end(self._qemu, f"nobody has used this QEMU for {self._grace:g} s, so it is ended")
        return True


def _lock(file: int, operation: int) -> int:
    """Take an exclusive lock (F_OFD_SETLK), or ask for the kind of the lock that is in its way (F_OFD_GETLK).

    Raises BlockingIOError if it cannot be taken.
    """
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind: int = struct.unpack(_FLOCK, fcntl.fcntl(file, operation, wanted))[0]
    return kind


def _ended(patience: int, *pidfds: int) -> bool:
    """Whether one of the processes has ended, or ends within `patience` milliseconds."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(patience))


def _tidy(logs: Sequence[str], cap: int) -> None:
    for log in logs:
        try:
            rotate(log, cap)
        except OSError as error:
            _say(f"{log} cannot be kept short: {error.strerror}")


def _claimed(handle_file: str, boot_id: str) -> bool:
    """Whether there is a handle of this boot, or one of which that cannot be told."""
    try:
        with open(handle_file, "rb") as stream:
            data = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        _say(f"QEMU runs on, although the process that booted it has ended: {handle_file}: {error.strerror}")
        return True
    return boot_id.encode() in data or not _of_another_boot(data)


def _of_another_boot(handle: bytes) -> bool:
    import json  # hardly ever needed, and takes a third of the memory

    try:
        return isinstance(json.loads(handle)["boot_id"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _end(qemu: int, why: str) -> None:
    import signal

    _say(why)
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            signal.pidfd_send_signal(qemu, number)
        except ProcessLookupError:
            return
        if _ended(_PATIENCE, qemu):
            return


if __name__ == "__main__":
    main(sys.argv)
