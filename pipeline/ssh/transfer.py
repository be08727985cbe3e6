"""File transfers from and to a guest: by one tar stream if the guest has tar, else by many SFTP requests at once."""

import logging
import shlex
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline.errors import CommandError, CommandExited, NoMatch, TransferRefused, UsageError
from pipeline.host.deadline import Deadline
from pipeline.host.faults import host_faults
from pipeline.ssh import jobs, sources, tar
from pipeline.ssh.command import Command
from pipeline.ssh.connection import Connection
from pipeline.ssh.jobs import Attributes, Job
from pipeline.ssh.landing import LEFT_OUT, Landing, PathInside, TransferLimits
from pipeline.ssh.pace import Pace
from pipeline.ssh.session import CONSOLE
from pipeline.ssh.sftp import Sftp
from pipeline.ssh.sources import Upload
from pipeline.text import goglob
from pipeline.text.goglob import decoded, encoded
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

_FEW = 4  # up to so many files go without tar
_LINE = 7000  # bytes of a command line, at most; dropbear takes 9,000


class Commands(Protocol):
    """What makes commands for a guest: Connector.command."""

    def __call__(self, *words: str, shell: bool = False) -> Command:
        """See Connector.command."""


@dataclass(frozen=True)
class _Match:
    """A file or directory in the guest that was asked for."""

    path: bytes
    parent: bytes
    name: PathInside
    """Where it lands: one name; or () for ".", whose contents land in the directory itself."""
    directory: bool
    missed: bool = True
    """Whether to warn if it is not there any more."""

    @property
    def word(self) -> str:
        """Its name for tar, which runs in its parent directory."""
        return decoded(b"".join(self.name)) or "."


class Transfer:
    """Transfers through one connection. See Connector.put and Connector.get."""

    def __init__(self, connection: Connection, commands: Commands, limits: TransferLimits) -> None:
        self._connection = connection
        self._commands = commands
        self._limits = limits

    def put(self, source: str, target: str) -> None:
        """See Connector.put."""
        found = sources.find(source)
        if self._tar(len(found)):
            self._put_by_tar(found, _plain(target))
        else:
            with Sftp(self._connection, self._limits) as session:
                _put_by_sftp(session, found, target)

    def _tar(self, count: int) -> bool:
        return count > _FEW and self._connection.facilities(Deadline(self._limits.stall)).tar

    def _put_by_tar(self, found: list[Upload], target: str) -> None:
        where = shlex.quote(target)
        command = self._commands(f"mkdir -p {where} && exec tar -x -o -f - -C {where}", shell=True)
        pace = Pace(self._limits.stall, self._limits.seconds)

        def send(data: bytes) -> None:
            command.write(data, Deadline(self._limits.stall))
            pace.moved(len(data))

        command.start(stdin=True)
        with command.ending():
            tar.write(found, send)
        command.end_input()
        command.wait(self._limits.stall)

    def get(self, source: str, directory: Path) -> None:
        """See Connector.get."""
        with Landing(directory, self._limits) as landing, Sftp(self._connection, self._limits) as session:
            self._land(session, landing, list(_matches(session, source)))

    def fetch(self, parent: str, names: Collection[str], directory: Path) -> None:
        """See Connector.fetch."""
        where = encoded(parent).rstrip(b"/")
        matches = [
            _Match(where + b"/" + encoded(name), where, (encoded(name),), directory=False, missed=False)
            for name in names
        ]
        with Landing(directory, self._limits) as landing, Sftp(self._connection, self._limits) as session:
            try:
                self._land(session, landing, matches)
            except CommandExited:  # tar, for which a file that has gone is an error
                left = [one for one in matches if not (directory / decoded(one.name[0])).exists()]
                session.run(_got_by_sftp(landing, left))

    def sizes(self, parent: str) -> dict[str, int]:
        """See Connector.sizes."""
        with Sftp(self._connection, self._limits) as session:
            return {decoded(name): what.size for name, what in _listed(session, encoded(parent)) if what.file}

    def _land(self, session: Sftp, landing: Landing, matches: "list[_Match]") -> None:
        if self._tar(_FEW + 1 if any(match.directory for match in matches) else len(matches)):
            wanted: deque[Job[None]] = deque()
            for batch in _batches(matches):
                wanted += self._get_by_tar(landing, batch)
        else:
            wanted = _got_by_sftp(landing, matches)
        session.run(wanted)

    def _get_by_tar(self, landing: Landing, batch: "list[_Match]") -> Iterator[Job[None]]:
        """Fetch a batch by one tar stream. Yields jobs for what the stream names but does not hold, such as links."""
        parent = _plain(decoded(batch[0].parent or b"."))
        command = self._commands("tar", "-c", "-f", "-", "-C", parent, "--", *(match.word for match in batch))
        command.stdout()
        command.start()
        with command.ending():
            pace = Pace(self._limits.stall, self._limits.seconds)
            reader = tar.TarReader(partial(self._read, command, pace))
            yield from _unpacked(reader, landing, batch)
            reader.rest()
        command.wait(self._limits.stall)

    def _read(self, command: Command, pace: Pace) -> bytes:
        data = command.session.read("stdout", Deadline(self._limits.stall))
        pace.moved(len(data))
        return data


def _plain(path: str) -> str:
    """Return the path in a form that no program takes for an option."""
    return f"./{path}" if path.startswith("-") else path


def _matches(session: Sftp, pattern: str) -> Iterator[_Match]:
    """Find what the pattern asks for in the guest, but for files named LEFT_OUT."""
    known: dict[str, Attributes] = {}

    def exists(path: str) -> bool:
        found = session.lstat(path)  # if the path ends in a slash, this follows a link
        known.update({path: found} if found else {})
        return found is not None

    def names(directory: str) -> list[str]:
        found = {decoded(name): what for name, what in _listed(session, encoded(directory))}
        known.update({goglob.joined(directory, name): what for name, what in found.items()})
        return list(found)

    found = goglob.expand(pattern, exists, names)
    if not found:
        raise NoMatch(
            f"no files matching glob: {one_line(pattern)!r}", hint="see what is there: topcoat ssh NAME -- ls"
        )
    for path in found:
        match = _match(encoded(path), known[path])
        if match.name[-1:] != (LEFT_OUT,):
            yield match


def _listed(session: Sftp, directory: bytes) -> list[tuple[bytes, Attributes]]:
    try:
        return session.result(jobs.listing(directory))
    except TransferRefused:
        raise
    except CommandError:  # as Go: what cannot be listed has no matches
        if not session.alive:
            raise
        return []


def _match(path: bytes, what: Attributes) -> _Match:
    parent, slash, name = path.rstrip(b"/").rpartition(b"/")
    if name in (b"", b".."):
        raise UsageError(
            f"{one_line(path)!r} has no name under which it could be stored", hint="name the directory, or take DIR/*"
        )
    return _Match(path, parent or slash, () if name == b"." else (name,), what.directory)


def _batches(matches: "list[_Match]") -> Iterator["list[_Match]"]:
    """Group the matches by their parent directories, as many in each group as a command line takes."""
    batch: list[_Match] = []
    length = 0
    for match in matches:
        size = len(shlex.quote(shlex.quote(match.word))) + 8
        if batch and (match.parent != batch[0].parent or length + size > _LINE):
            yield batch
            batch, length = [], 0
        batch.append(match)
        length += size
    if batch:
        yield batch


def _unpacked(reader: tar.TarReader, landing: Landing, batch: "list[_Match]") -> Iterator[Job[None]]:
    wanted = {match.name for match in batch}
    while (member := reader.next()) is not None:
        name = tuple(part for part in member.name.split(b"/") if part != b".")
        if name[:1] not in wanted and () not in wanted:
            raise TransferRefused(f"the guest sends what nobody asked for: {one_line(member.name)!r}", hint=CONSOLE)
        landing.admit(name)
        if member.directory:
            landing.directory(name)
        elif name[-1:] == (LEFT_OUT,):
            reader.content(lambda data: landing.count(len(data)))
        elif member.file:
            with landing.file(name) as incoming:
                reader.content(incoming.write)
        else:
            path = b"/".join((batch[0].parent or b".", *name))
            yield _followed(landing, path, name, missed=batch[0].missed)


def _got_by_sftp(landing: Landing, matches: "list[_Match]") -> deque[Job[None]]:
    queue: deque[Job[None]] = deque()
    for match in matches:
        landing.admit(match.name)
        if match.directory:
            queue.append(_tree(queue, landing, match.path, match.name))
        else:
            queue.append(_followed(landing, match.path, match.name, missed=match.missed))
    return queue


def _tree(queue: deque[Job[None]], landing: Landing, path: bytes, name: PathInside) -> Job[None]:
    """List a directory, and add jobs for what is in it to the queue."""
    landing.directory(name)
    for entry, what in (yield from jobs.listing(path)):
        inside = (*name, entry)
        landing.admit(inside)
        there = path + b"/" + entry
        if what.directory:
            queue.append(_tree(queue, landing, there, inside))
        elif entry != LEFT_OUT:
            queue.append(_fetched(landing, there, inside) if what.file else _followed(landing, there, inside))


def _fetched(landing: Landing, path: bytes, name: PathInside, *, missed: bool = True) -> Job[None]:
    (opened,) = yield [jobs.opening(path, write=False)]
    if jobs.is_gone(opened):
        _gone(path, missed=missed)
        return
    with landing.file(name) as incoming:
        yield from jobs.fetch(opened, path, incoming.write)


def _followed(landing: Landing, path: bytes, name: PathInside, *, missed: bool = True) -> Job[None]:
    """Fetch what a path leads to, if that is a regular file: reading a device or a FIFO could take for ever."""
    (reply,) = yield [jobs.statting(path, follow=True)]
    there = jobs.attributes_of(reply)
    if there is not None and there.file:
        yield from _fetched(landing, path, name, missed=missed)
        return
    if there is None:
        (reply,) = yield [jobs.statting(path, follow=False)]
        if jobs.is_gone(reply):
            _gone(path, missed=missed)
            return
    what = "links to nothing" if there is None else "is no file, and no link to one"
    log.warning("%s in the guest is left out: it %s", one_line(path), what)


def _gone(path: bytes, *, missed: bool) -> None:
    log.log(logging.WARNING if missed else logging.DEBUG, "%s in the guest has gone meanwhile", one_line(path))


def _put_by_sftp(session: Sftp, found: list[Upload], target: str) -> None:
    root = encoded(target)
    parents = [root[:at] for at in range(1, len(root)) if root[at : at + 1] == b"/" != root[at - 1 : at]]
    for path in (*parents, root):
        session.result(jobs.make(path))
    directories = [source for source in found if source.directory and source.arrives]
    for depth in sorted({source.arrives.count(b"/") for source in directories}):
        level = [source for source in directories if source.arrives.count(b"/") == depth]
        session.run(deque(jobs.make(_below(root, source)) for source in level))
    session.run(deque(_stored(source, _below(root, source)) for source in found if not source.directory))


def _below(root: bytes, source: Upload) -> bytes:
    return root.rstrip(b"/") + b"/" + source.arrives


def _stored(source: Upload, path: bytes) -> Job[None]:
    with host_faults("reading what is to be put into the guest", "file"), source.opened() as stream:
        yield from jobs.store(path, stream.read)
