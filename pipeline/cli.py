"""The `topcoat` command: look at instances, enter them, stop them.

Exit codes: 0 done, 2 wrong usage, 20 a file or program is missing, 30 failed, 10 somebody else is at it. `topcoat ssh`
ends with the status of the command in the guest, or with 255 if there is none, as ssh does.
"""

import argparse
import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from pipeline import settings
from pipeline.errors import CommandError, ConnectError, StopError, TopcoatError, UsageError
from pipeline.instance import Handle, Instance
from pipeline.settings import Settings, Timeouts
from pipeline.size import readable
from pipeline.text import printable

SSH_FAILED = 255
_FOLLOW = 0.2
_CHUNK = 1 << 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Mistakes and failures are explained on stderr, without a traceback."""
    parser = _parser()
    options, parameters = parser.parse_known_args(arguments)
    if parameters and "task" not in options:
        parser.error(f"unrecognized arguments: {' '.join(parameters)}")
    options.parameters = parameters
    try:
        command: Callable[[Settings, argparse.Namespace], int] = options.run
        return command(settings.load(), options)
    except TopcoatError as error:
        print(f"error: {error.explain()}", file=sys.stderr)
        in_guest = isinstance(error, (CommandError, ConnectError))
        return SSH_FAILED if in_guest and options.command == "ssh" else error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="topcoat", description="Look at running guests, enter them, stop them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    instances = commands.add_parser("instances", help="list all instances")
    instances.add_argument("--json", action="store_true", help="for machines")
    instances.set_defaults(run=_instances)

    ssh = commands.add_parser("ssh", help="run a command in a guest, or log in")
    ssh.add_argument("name")
    ssh.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="-- CMD",
        help="several words arrive as they are; one is a shell line",
    )
    ssh.set_defaults(run=_ssh)

    logs = commands.add_parser("logs", help="print what a guest wrote to its serial port")
    logs.add_argument("name")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the guest ends")
    logs.set_defaults(run=_logs)

    stop = commands.add_parser("stop", help="end a guest; its logs stay")
    stop.add_argument("name", nargs="?")
    stop.add_argument("--all", action="store_true", help="all instances of the store")
    stop.add_argument("--json", action="store_true", help="for machines")
    stop.set_defaults(run=_stop)

    why = commands.add_parser("why", help="which artifacts are fresh, which are stale, and why")
    why.set_defaults(run=_why)
    plan = commands.add_parser("plan", help="what a run would make")
    plan.add_argument("--check", action="store_true", help="exit code 1 if anything would be made")
    plan.set_defaults(run=_plan)
    force = commands.add_parser("force", help="have the next run make an artifact again")
    force.set_defaults(run=_force)
    force.add_argument("task", help="and its parameters, as for luigi")
    for about_a_task in (why, plan):
        about_a_task.add_argument("task", nargs="?", default="BootInstance", help="and its parameters, as for luigi")
    for listing in (why, plan):
        listing.add_argument("--json", action="store_true", help="for machines")

    clean = commands.add_parser("clean", help="delete prepared images, the demo guest's parts and caches")
    clean.add_argument("--yes", action="store_true", help="do it; without, only show what would be deleted")
    clean.add_argument("--json", action="store_true", help="for machines")
    clean.set_defaults(run=_clean)

    argv = commands.add_parser("argv", help="print QEMU's command line; before a boot, the one that it would have")
    argv.add_argument("name")
    argv.add_argument("--json", action="store_true", help="as a list of words")
    argv.set_defaults(run=_argv)
    return parser


def _instances(chosen: Settings, options: argparse.Namespace) -> int:
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
    }


def _ssh(chosen: Settings, options: argparse.Namespace) -> int:
    instance = Instance.existing(chosen.store, options.name)
    handle = instance.require_live()
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        _log_in(instance, handle)
    from pipeline import ssh

    address = ssh.Address(handle.ssh.host, handle.ssh.port, handle.ssh.user, Path(handle.ssh.key), handle.ssh.host_key)
    timeouts = Timeouts()
    try:
        with ssh.connect(address, timeouts, timeouts.connect + timeouts.banner + timeouts.auth) as connection:
            return connection.stream(ssh.quote(words), _stdin(), sys.stdout.buffer, sys.stderr.buffer)
    except (CommandError, ConnectError) as error:
        raise error.about(instance.name) from error


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


def _logs(chosen: Settings, options: argparse.Namespace) -> int:
    instance = Instance.existing(chosen.store, options.name)
    try:
        stream = instance.serial_log.open("rb")
    except FileNotFoundError:
        raise UsageError(
            f"{instance.name} has no serial log yet",
            hint=f"boot it: luigi --module tasks BootInstance --name {instance.name}",
        ) from None
    with stream:
        _copy(stream)
        while options.follow and (handle := instance.live_handle()):
            handle.process.wait(_FOLLOW)  # wakes at once when QEMU ends
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


def _stop(chosen: Settings, options: argparse.Namespace) -> int:
    if bool(options.name) == options.all:
        raise UsageError("say which instance to stop", hint="topcoat stop NAME, or topcoat stop --all")
    instances = Instance.all(chosen.store) if options.all else [Instance.existing(chosen.store, options.name)]
    results, failure = {}, 0
    for instance in instances:
        try:
            results[instance.name] = instance.stop(Timeouts().stop)
        except (StopError, UsageError) as error:
            print(f"error: {error.about(instance.name).explain()}", file=sys.stderr)
            failure = error.exit_code
    if options.json:
        print(json.dumps({"schema": 1, "stopped": results}, indent=2, sort_keys=True))
        return failure
    for name, how in results.items():
        if how != "not running" or not options.all:
            print(f"{name}: {_ENDED[how]}")
    return failure


_ENDED = {
    "quit": "stopped",
    "SIGTERM": "stopped by SIGTERM; it did not take QEMU's quit command",
    "SIGKILL": "stopped by SIGKILL; it took neither QEMU's quit command nor SIGTERM",
    "not running": "was not running",
}


def _why(chosen: Settings, options: argparse.Namespace) -> int:
    from tasks import explain

    graph = explain.look([options.task, *options.parameters])
    if options.json:
        print(json.dumps(graph.encode_tree(), indent=2, sort_keys=True))
    else:
        print(*graph.tree(), sep="\n")
    return 0


def _plan(chosen: Settings, options: argparse.Namespace) -> int:
    from tasks import explain

    graph = explain.look([options.task, *options.parameters])
    if options.json:
        print(json.dumps(graph.encode_plan(), indent=2, sort_keys=True))
    else:
        print("".join(f"{line}\n" for line in graph.plan()), end="")
    return 1 if options.check and graph.pending() else 0


def _force(chosen: Settings, options: argparse.Namespace) -> int:
    from tasks import explain

    print(explain.force([options.task, *options.parameters]))
    return 0


def _clean(chosen: Settings, options: argparse.Namespace) -> int:
    from pipeline import clean

    items = clean.items(chosen.store)
    if options.yes:
        items = [item if item.kept else clean.delete(item) for item in items]
    if options.json:
        rows = [{"path": str(item.path), "bytes": item.bytes, "kept": item.kept or None} for item in items]
        print(json.dumps({"schema": 1, "done": options.yes, "items": rows}, indent=2, sort_keys=True))
        return 0
    for item in items:
        verb = "keep" if item.kept else "deleted" if options.yes else "delete"
        print(f"{verb:<8} {item.path} ({readable(item.bytes)})" + (f": {item.kept}" if item.kept else ""))
    if not options.yes and not all(item.kept for item in items):
        print("nothing was deleted; to do it: topcoat clean --yes")
    return 0


def _argv(chosen: Settings, options: argparse.Namespace) -> int:
    instance = Instance.named(chosen.store, options.name)
    handle = instance.live_handle()
    argv = handle.argv if handle else _planned(chosen, instance)
    print(json.dumps({"schema": 1, "argv": argv}, indent=2) if options.json else shlex.join(argv))
    return 0


def _planned(chosen: Settings, instance: Instance) -> tuple[str, ...]:
    from pipeline import build
    from pipeline.qemu.boot import images_of, plan

    found = build.load(chosen)
    return plan(chosen, found, instance, images_of(chosen.store, found), chosen.boot.ready).argv


if __name__ == "__main__":
    sys.exit(main())
