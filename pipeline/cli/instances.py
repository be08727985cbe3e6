"""Commands about instances: list them, enter them, read their logs, stop them."""

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import IO, BinaryIO

from pipeline.errors import TopcoatError, UsageError
from pipeline.host import stdio
from pipeline.host.stdio import only_telling
from pipeline.settings import Settings, Timeouts
from pipeline.text.printable import printable
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.qemu import stopping
from pipeline.vm.qemu.keeper import parts

_FOLLOW = 0.2
_ATTEMPTS = 4  # other users of this host can hold all connections that a guest allows before login
_PAUSE = 1.0
_CHUNK = 1 << 16


def instances(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat instances`: list all instances of the store."""
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
    """Do `topcoat ssh`: run a command in a guest and return its status, or log in with OpenSSH's client."""
    instance = Instance.existing(chosen.store, options.name)
    instance.require_running()
    handle = _proved(instance)
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        _log_in(instance, handle)
    from pipeline.ssh.connection import quote
    from pipeline.ssh.connector import Connector, Retries

    timeouts = chosen.boot.timeouts(handle.accelerator)
    retries = Retries(_ATTEMPTS, _PAUSE, timeouts.connect + timeouts.banner + timeouts.auth)
    with _about(instance), closing(Connector(handle.ssh, timeouts, retries)) as connector:
        connection = connector.connected()
        return connection.stream(quote(words), _stdin(), sys.stdout.buffer, sys.stderr.buffer)


def _proved(instance: Instance) -> Handle:
    """The handle of a living instance, after QEMU has confirmed what it says."""
    from pipeline.vm.qemu import identity

    handle = instance.require_live()
    with _about(instance):
        identity.verify(instance, handle)
    return handle


@contextmanager
def _about(instance: Instance) -> Iterator[None]:
    try:
        yield
    except TopcoatError as error:
        raise error.about(instance.name) from error.__cause__


def _stdin() -> IO[bytes]:
    """An unbuffered stream of stdin; an empty one if stdin is closed."""
    if sys.stdin is None:
        return io.BytesIO()
    # With a buffer, a thread that still waits for a key would hold its lock when Python ends, which is fatal
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)


def _log_in(instance: Instance, handle: Handle) -> None:
    """Become OpenSSH's client, which handles terminals well. It does not read the user's own configuration."""
    program = shutil.which("ssh")
    if program is None:
        raise UsageError(
            "a login needs OpenSSH's client, and there is no ssh in PATH",
            hint=f"install it (apt-get install openssh-client), or give a command: topcoat ssh {instance.name} -- CMD",
        )
    from pipeline.ssh import holders

    host_key = handle.ssh.host_key
    instance.known_hosts.write_text(f"[{handle.ssh.host}]:{handle.ssh.port} {host_key}\n" if host_key else "")
    checking = "yes" if host_key else "accept-new"
    options = [
        *("-F", "none", "-i", os.path.relpath(handle.ssh.key, instance.directory), "-p", str(handle.ssh.port)),
        *("-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "PreferredAuthentications=publickey"),
        *("-o", f"StrictHostKeyChecking={checking}", "-o", "UpdateHostKeys=no"),
        *("-o", f"UserKnownHostsFile={instance.known_hosts.name}", "-o", "GlobalKnownHostsFile=none"),
    ]
    if held := holders.told(handle.ssh.port, but=os.getuid()):
        print(f"note: {instance.name}: {held}", file=sys.stderr)
    program = os.path.abspath(program)
    os.chdir(instance.directory)  # for relative paths: versions of OpenSSH differ in how they read blanks, % and ${
    os.execv(program, ["ssh", *options, f"{handle.ssh.user}@{handle.ssh.host}"])


def logs(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat logs`: print all kept parts of the serial log, and with --follow what comes until the guest ends."""
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
            stdio.require_reader()  # while a silent guest writes nothing, no write would fail
            if os.fstat(stream.fileno()).st_size < stream.tell():  # it was rotated
                stream.seek(0)
            _copy(stream)
    return 0


def _copy(stream: BinaryIO) -> None:
    """Print the rest of the log: unchanged, but on a terminal without the guest's control characters."""
    while chunk := stream.read(_CHUNK):
        if sys.stdout.isatty():
            sys.stdout.write(printable(chunk))
        else:
            sys.stdout.buffer.write(chunk)
    sys.stdout.flush()


def console(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat console`: connect stdin and stdout with the guest's serial port."""
    from pipeline.cli import console

    instance = Instance.existing(chosen.store, options.name)
    handle = _proved(instance)
    if line := instance.halt():
        print(f"{instance.name}: its kernel has halted: {line}", file=sys.stderr)
    how = console.attach(instance.name, instance.serial_socket, handle.process, safe=options.safe)
    if sys.stdout.isatty():
        print()
    print(f"{instance.name}: {how}", file=sys.stderr)
    return 0


@only_telling()
def stop(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat stop`: end one instance, or all, and print how each has ended."""
    if bool(options.name) == options.all:
        raise UsageError("say which instance to stop", hint="topcoat stop NAME, or topcoat stop --all")
    found = Instance.all(chosen.store) if options.all else [Instance.existing(chosen.store, options.name)]
    results, failure = {}, 0
    for instance in found:
        try:
            results[instance.name] = stopping.stop(instance, Timeouts().stop, gently=options.gently)
        except TopcoatError as error:  # the others are to be stopped too
            print(f"error: {error.about(instance.name).explain()}", file=sys.stderr)
            failure = error.exit_code
    if options.json:
        print(json.dumps({"schema": 1, "stopped": results}, indent=2, sort_keys=True))
        return failure
    for name, how in results.items():
        if how != "not running" or not options.all:
            print(f"{name}: {stopping.ENDED[how]}")
    return failure
