"""Commands about instances: look at them, enter them, stop them."""

import argparse
import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from pipeline import streams
from pipeline.errors import TopcoatError, UsageError
from pipeline.instance import ENDED, Handle, Instance
from pipeline.qemu.keeper import parts
from pipeline.settings import Settings, Timeouts
from pipeline.streams import only_telling
from pipeline.text import printable

_FOLLOW = 0.2
_CHUNK = 1 << 16


def instances(chosen: Settings, options: argparse.Namespace) -> int:
    """List all instances."""
    rows = [_facts(instance) for instance in Instance.all(chosen.store)]
    if options.json:
        print(json.dumps({"schema": 1, "instances": rows}, indent=2, sort_keys=True))
        return 0
    if not rows:
        print("no instances yet; boot one: luigi --module tasks BootInstance", file=sys.stderr)
        return 0
    columns = ("name", "state", "pid", "port", "build", "started")
    table = [columns, *(tuple(str(row[column] or "-") for column in columns) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in rows:
        if row["halt"]:
            print(f"{row['name']}: its kernel has halted: {row['halt']}", file=sys.stderr)
    return 0


def _facts(instance: Instance) -> dict[str, str | int | None]:
    state = instance.state()
    handle = instance.live_handle()
    return {
        "name": instance.name,
        "state": state,
        "pid": handle.process.pid if handle else None,
        "port": handle.ssh.port if handle else None,
        "build": handle.build if handle else None,
        "started": handle.started if handle else None,
        "directory": str(instance.directory),
        "halt": instance.halt() or None if state == "halted" else None,
    }


def ssh(chosen: Settings, options: argparse.Namespace) -> int:
    """Run a command in a guest, or become OpenSSH's client."""
    instance = Instance.existing(chosen.store, options.name)
    instance.require_running()
    handle = _proved(instance)
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        _log_in(instance, handle)
    from pipeline import ssh

    timeouts = chosen.boot.timeouts("kvm" if "-enable-kvm" in handle.argv else "tcg")
    with _about(instance):
        limit = timeouts.connect + timeouts.banner + timeouts.auth
        with ssh.connect(handle.ssh, timeouts, limit) as connection:
            return connection.stream(ssh.quote(words), _stdin(), sys.stdout.buffer, sys.stderr.buffer)


def _proved(instance: Instance) -> Handle:
    """The handle of an instance that is what it tells of."""
    from pipeline.qemu import identity

    handle = instance.require_live()
    with _about(instance):
        identity.verify(handle)
    return handle


@contextmanager
def _about(instance: Instance) -> Iterator[None]:
    try:
        yield
    except TopcoatError as error:
        raise error.about(instance.name) from error.__cause__


def _stdin() -> IO[bytes]:
    """What comes on stdin, unbuffered; nothing if it is closed."""
    if sys.stdin is None:
        return io.BytesIO()
    # A thread that still waits for a key on the terminal would hold a buffer's lock when Python ends, which is fatal
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)


def _log_in(instance: Instance, handle: Handle) -> None:
    """Become OpenSSH's client: a login on a terminal is its trade."""
    program = shutil.which("ssh")
    if program is None:
        raise UsageError(
            "a login needs OpenSSH's client, and there is no ssh in PATH",
            hint=f"install it (apt-get install openssh-client), or give a command: topcoat ssh {instance.name} -- CMD",
        )
    host_key = handle.ssh.host_key
    instance.known_hosts.write_text(f"[{handle.ssh.host}]:{handle.ssh.port} {host_key}\n" if host_key else "")
    checking = "yes" if host_key else "accept-new"
    options = [
        *("-i", handle.ssh.key, "-p", str(handle.ssh.port)),
        *("-o", "IdentitiesOnly=yes", "-o", f"StrictHostKeyChecking={checking}"),
        *("-o", f"UserKnownHostsFile={shlex.quote(str(instance.known_hosts))}"),
    ]
    os.execv(program, ["ssh", *options, f"{handle.ssh.user}@{handle.ssh.host}"])


def logs(chosen: Settings, options: argparse.Namespace) -> int:
    """Print the serial log, all parts of it that are kept."""
    instance = Instance.existing(chosen.store, options.name)
    found = parts(instance.serial_log)
    if not found:
        raise UsageError(
            f"{instance.name} has no serial log yet",
            hint=f"boot it: luigi --module tasks BootInstance --name {instance.name}",
        )
    for older in found[:-1]:
        with older.open("rb") as stream:
            _copy(stream)
    with found[-1].open("rb") as stream:
        _copy(stream)
        while options.follow and (handle := instance.live_handle()):
            handle.process.wait(_FOLLOW)  # wakes at once when QEMU ends
            streams.require_reader()  # a guest that says nothing would keep us from seeing it
            if os.fstat(stream.fileno()).st_size < stream.tell():  # it was rotated
                stream.seek(0)
            _copy(stream)
    return 0


def _copy(stream: BinaryIO) -> None:
    """Pass on what is left of the log: as it is, but on a terminal without the guest's control characters."""
    while chunk := stream.read(_CHUNK):
        if sys.stdout.isatty():
            sys.stdout.write(printable(chunk))
        else:
            sys.stdout.buffer.write(chunk)
    sys.stdout.flush()


def console(chosen: Settings, options: argparse.Namespace) -> int:
    """Connect the terminal with the guest's serial port."""
    from pipeline import terminal

    instance = Instance.existing(chosen.store, options.name)
    handle = _proved(instance)
    if line := instance.halt():
        print(f"{instance.name}: its kernel has halted: {line}", file=sys.stderr)
    how = terminal.attach(instance.name, Path(handle.sockets) / "serial", handle.process, safe=options.safe)
    if sys.stdout.isatty():
        print()
    print(f"{instance.name}: {how}", file=sys.stderr)
    return 0


@only_telling()
def stop(chosen: Settings, options: argparse.Namespace) -> int:
    """End instances, and say how each ended."""
    if bool(options.name) == options.all:
        raise UsageError("say which instance to stop", hint="topcoat stop NAME, or topcoat stop --all")
    found = Instance.all(chosen.store) if options.all else [Instance.existing(chosen.store, options.name)]
    results, failure = {}, 0
    for instance in found:
        try:
            results[instance.name] = instance.stop(Timeouts().stop, gently=options.gently)
        except TopcoatError as error:  # the others are stopped all the same
            print(f"error: {error.about(instance.name).explain()}", file=sys.stderr)
            failure = error.exit_code
    if options.json:
        print(json.dumps({"schema": 1, "stopped": results}, indent=2, sort_keys=True))
        return failure
    for name, how in results.items():
        if how != "not running" or not options.all:
            print(f"{name}: {ENDED[how]}")
    return failure
