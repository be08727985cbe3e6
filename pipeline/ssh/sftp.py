"""A session with the guest's SFTP server that has many requests under way at once.

With small files it is not the content that takes time, but one round trip after the other. One thread does it all.
"""

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from paramiko import Message
from paramiko.sftp import CMD_INIT, CMD_STATUS, CMD_VERSION

from pipeline.errors import TransferRefused
from pipeline.host.deadline import Deadline
from pipeline.ssh.connection import Connection
from pipeline.ssh.jobs import LARGEST_REPLY, Attributes, Job, Reply, SftpRequest, attributes_of, statting
from pipeline.ssh.landing import TransferLimits
from pipeline.ssh.pace import REPLY, Pace
from pipeline.ssh.session import CONSOLE
from pipeline.text import goglob

PARALLEL = 24
"""How many jobs are under way at once. All their requests without content fit into dropbear's window of 24 KiB."""

T = TypeVar("T")
_LEAVING = 2.0


class _Running:
    """A job whose requests are under way."""

    def __init__(self, job: Job[None]) -> None:
        self.job = job
        self.replies: list[Reply | None] = []

    def got(self, place: int, reply: Reply) -> bool:
        """Take the reply to the request at this place. Returns whether it was the last that was missing."""
        self.replies[place] = reply
        return None not in self.replies

    def resume(self) -> Sequence[SftpRequest]:
        """Send the job its replies, and return its next requests; none at its end."""
        replies = [reply for reply in self.replies if reply]
        try:
            requests = self.job.send(replies) if replies else next(self.job)
        except StopIteration:
            return ()
        self.replies = [None] * len(requests)
        return requests


class Sftp:
    """A session with the guest's SFTP server. As a context manager it is closed after the body.

    It and its methods raise CommandError, and CommandTimeout if nothing comes for `limits.stall` seconds, or all that
    comes is too slow.
    """

    def __init__(self, connection: Connection, limits: TransferLimits) -> None:
        self._stall = limits.stall
        self._pace = Pace(limits.stall, limits.seconds)
        self._number = 0
        self._waiting: dict[int, tuple[_Running, int, SftpRequest]] = {}
        self._buffer = bytearray()
        deadline = Deadline(limits.stall)
        self._session = connection.session(
            "sftp", "subsystem", "sftp", deadline, lambda session: session.take("stdout")
        )
        try:
            self._session.write(struct.pack(">IBI", 5, CMD_INIT, 3), deadline)
            if self._packet()[0] != CMD_VERSION:
                raise TransferRefused("the guest's SFTP server does not tell its version", hint=CONSOLE)
        except BaseException:
            self._session.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self._session.end_input()
            self._session.leave(_LEAVING)
        else:
            self._session.close()

    @property
    def alive(self) -> bool:
        """Whether the session with the server has not ended."""
        return not self._session.ended

    def stat(self, path: str) -> Attributes | None:
        """Tell what is at the path; a link counts as what it leads to. None if nothing is there."""
        return self._one(statting(goglob.encoded(path), follow=True), attributes_of)

    def lstat(self, path: str) -> Attributes | None:
        """Tell what is at the path; links are not followed. None if nothing is there."""
        return self._one(statting(goglob.encoded(path), follow=False), attributes_of)

    def _one(self, request: SftpRequest, understand: Callable[[Reply], T]) -> T:
        def job() -> Job[T]:
            (reply,) = yield [request]
            return understand(reply)

        return self.result(job())

    def result(self, job: Job[T]) -> T:
        """Run one job and return its result."""
        results: list[T] = []

        def keeping() -> Job[None]:
            results.append((yield from job))

        self.run(deque([keeping()]))
        return results[0]

    def run(self, jobs: deque[Job[None]]) -> None:
        """Run all jobs in the queue, to which they may add further ones, to their end or to the first error."""
        running: set[_Running] = set()
        try:
            while jobs or running:
                while jobs and len(running) < PARALLEL:
                    started = _Running(jobs.popleft())
                    running.add(started)
                    self._resume(started, running)
                if running:
                    self._resume(self._answered(), running)
        finally:
            for each in running:
                each.job.close()

    def _resume(self, each: _Running, running: set[_Running]) -> None:
        requests = each.resume()
        if not requests:
            running.discard(each)
        self._send(each, requests)

    def _send(self, owner: _Running, requests: Sequence[SftpRequest]) -> None:
        packets = bytearray()
        for place, request in enumerate(requests):
            self._number = (self._number + 1) & 0xFFFFFFFF
            self._waiting[self._number] = owner, place, request
            packets += struct.pack(">IBI", 5 + len(request.body), request.kind, self._number) + request.body
        self._session.write(bytes(packets), Deadline(self._stall))
        self._pace.moved(len(packets))

    def _answered(self) -> _Running:
        """Receive replies until one of the jobs has all that it waits for, and return that job."""
        while True:
            kind, body = self._packet()
            message = Message(body)
            number = message.get_int()
            if number not in self._waiting:
                raise TransferRefused("the guest's SFTP server answers what was not asked", hint=CONSOLE)
            owner, place, request = self._waiting.pop(number)
            code, words = (message.get_int(), message.get_string()) if kind == CMD_STATUS else (None, b"")
            if owner.got(place, Reply(request, kind, message, code, words)):
                return owner

    def _packet(self) -> tuple[int, bytes]:
        size = int.from_bytes(self._exactly(4), "big")
        if not 1 <= size <= LARGEST_REPLY:
            raise TransferRefused(f"the guest's SFTP server announces a reply of {size} bytes", hint=CONSOLE)
        packet = self._exactly(size)
        self._pace.moved(REPLY)
        return packet[0], packet[1:]

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self._session.read("stdout", Deadline(self._stall))
            if not data:
                raise self._session.broken("its SFTP server has ended, or the connection broke")
            self._buffer += data
            self._pace.moved(len(data))
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken
