"""Fetching what a fuzzer has found from its guest, while it runs and after it has ended."""

import logging
import os
import posixpath
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pipeline.campaign.guest_fuzzer import CORPUS
from pipeline.campaign.guests import GuestWorkspace
from pipeline.errors import CommandError, CommandTimeout, ConnectError, StoreError, TransferRefused
from pipeline.fuzz.corpus import Corpus, files
from pipeline.fuzz.crashes import artifacts
from pipeline.host.worker import Worker
from pipeline.ssh.session import CONSOLE
from pipeline.store.publish import scratch
from pipeline.text.printable import one_line
from pipeline.text.quantity import readable_size

log = logging.getLogger("topcoat")

MOST_FILES = 20_000
"""The largest number of units that are fetched at once."""

MOST_ARTIFACTS = 16
"""The largest number of artifacts of one run that are fetched."""

MOST_REFUSALS = 3
"""After so many refusals in one run, the guest is asked for no more artifacts: each can take a minute to fail."""

LONGEST_NAME = 255
"""Bytes of the longest file name that is asked for: with a longer one, the whole request would fail."""

LARGEST_ARTIFACT = 64 << 20
"""Bytes of all artifacts of one run, which are held in memory. No fuzzer makes as much, but a guest can claim so."""

MOST_WAITING = 64 << 20
"""Bytes of the output of runs that wait to be taken in. With more, the next run must wait: a guest can say much."""

END_LIMIT = 900.0
"""Seconds for all that is still to be fetched after a run, however well each transfer goes."""


@dataclass(frozen=True)
class _Step:
    """Something that was posted."""

    call: Callable[[], object]
    weight: int


class Harvest:
    """What a fuzzer finds, fetched by a thread: units at intervals from `start` on, and a last time at `end`.

    Artifacts are fetched as soon as they are reported. If the fuzzer runs several times, what is told by `found` and
    `post` is done in that order.

    A guest that does not answer is no error: what has come is kept, and the run itself will tell. Two things end the
    harvest, and `failure` has the reason: a store that takes no more, and a guest that is still sending END_LIMIT
    seconds after the run.
    """

    def __init__(
        self,
        workspace: GuestWorkspace,
        corpus: Corpus,
        source: str,
        every: float,
        unit_size: int,
        came: Callable[[], object] = lambda: None,
        wanted: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """Harvest each `every` seconds what `workspace` does not list as known; what is fetched is added to that list.

        Units of more than `unit_size` bytes are not fetched. Artifacts come first, as there may be many units. `wanted`
        is asked before one is fetched, by its path, and `came` is called once they have been fetched: in the thread.
        """
        self.added = 0
        """The number of units that the corpus did not have before."""
        self.artifacts: dict[str, bytes] = {}
        """The contents of the artifacts of the present run that were fetched, by name."""
        self.torn: set[str] = set()
        """Names of artifacts whose content, as the guest gave it, is not what their names say."""
        self.failure: StoreError | CommandTimeout | None = None
        self._workspace, self._guest_fuzzer, self._known = workspace, workspace.guest_fuzzer, workspace.known
        self._corpus, self._source = corpus, source
        self._every, self._unit_size, self._came, self._wanted = every, unit_size, came, wanted
        self._due = time.monotonic() + every
        """When units are fetched next."""
        self._reported: deque[str | _Step] = deque()
        """Paths of artifacts that are to be fetched, and what is to be called between them."""
        self._of_run: list[str] = []
        """Paths of the artifacts of the present run."""
        self._spent: list[str] = []
        """Paths of those of earlier runs, which were taken or are lost, and need not stay in the guest."""
        self._refusals: list[str] = []
        """Paths of the artifacts that the guest did not give, once for each time that it was asked."""
        self._torn_units: set[str] = set()
        """Names of the units that were not whole when units were fetched last."""
        self._seen = 0
        self._room = threading.Condition()
        self._waiting = 0
        """The weight of all that was posted and not called."""
        self._gone = False
        """Whether the thread has ended, so that nobody makes room any more."""
        self._wake = threading.Event()
        self._ended = self._over = False

    def found(self, path: str) -> None:
        """Have the thread fetch an artifact that was just reported, unless there were MOST_ARTIFACTS before."""
        self._seen += 1
        if self._seen <= MOST_ARTIFACTS:
            self._reported.append(path)
            self._wake.set()

    def post(self, step: Callable[[], object], weight: int = 0) -> None:
        """Have the thread call this after what was reported before: a run has ended, and another one begins.

        `weight` is how many bytes it holds. Waits while MOST_WAITING are held, unless the thread is gone.
        """
        self._seen = 0
        with self._room:
            self._room.wait_for(lambda: self._gone or self.failure or self._waiting < MOST_WAITING, END_LIMIT)
            self._waiting += weight
        self._reported.append(_Step(step, weight))
        self._wake.set()

    def begin(self) -> tuple[Mapping[str, bytes], Collection[str]]:
        """Begin to fetch the artifacts of another run. Returns views of the contents by name, and of those torn.

        To be called by what was posted, or before `start`.
        """
        self.artifacts, self.torn = {}, set()
        self._refusals = []
        self._spent += self._of_run
        self._of_run = []
        return self.artifacts, self.torn

    @property
    def is_over(self) -> bool:
        """Whether `over` was called."""
        return self._over

    def over(self) -> None:
        """Have the thread fetch what was reported, and call `came`, even if nothing was: no more will come.

        Units then wait until `end`: whatever ends the fuzzer ends what fetches them, too.
        """
        self._over = True
        self._wake.set()

    def start(self, harvested: Callable[[int], None], failed: Callable[[], None]) -> Worker:
        """Begin to harvest in a thread.

        `harvested` is called with the number of new units after each harvest but the last, and `failed` if the store
        takes no more.
        """

        def work() -> None:
            try:
                while not self._woken():
                    due = time.monotonic() >= self._due
                    added = self.take(units=due)
                    if self.failure:  # nobody waits for this thread any more
                        return
                    if due:
                        harvested(added)
                        self._due = time.monotonic() + self._every
                self.finish()
            except StoreError as error:
                self.failure = self.failure or error
                failed()
            finally:
                with self._room:
                    self._gone = True
                    self._room.notify_all()

        return Worker("harvest", work)

    def _woken(self) -> bool:
        """Wait until there is something to do. Returns whether it is the last time."""
        self._wake.wait(max(0.0, self._due - time.monotonic()))
        self._wake.clear()
        return self._ended

    def end(self, worker: Worker) -> None:
        """Have the thread fetch the rest, and wait for it, at most END_LIMIT seconds. Raises what the thread raised."""
        self._ended = True
        self._wake.set()
        if not worker.join(END_LIMIT):
            self.failure = self.failure or CommandTimeout(
                f"what it had found had not all come {END_LIMIT:g} s after its end", hint=CONSOLE
            )
            log.warning("harvesting %s: %s", self._source, self.failure.message)
        if worker.failure:
            raise worker.failure

    def left(self) -> list[Callable[[], object]]:
        """What was posted and not called, as the guest or the store has failed. To be called once, after `end`."""
        left, self._reported = self._reported, deque()
        return [step.call for step in left if not isinstance(step, str)]

    def take(self, *, units: bool = True) -> int:
        """Fetch what is new. Returns the number of units that the corpus did not have. Raises StoreError.

        Without `units`, only artifacts are fetched.
        """
        try:
            over = self._over and not self._ended
            self._take_artifacts(over)
            if over or not units:
                return 0
            self._remove_spent()
            return self._take_units()
        except (ConnectError, CommandError) as error:
            log.warning("harvesting %s: %s", self._source, one_line(str(error)))
            return 0

    def finish(self) -> None:
        """Fetch what is new after the run; a unit that is still not whole is lost. Raises StoreError."""
        self.take()
        if lost := sorted(self._torn_units - self._workspace.lost):
            self._workspace.lost.update(lost)
            log.warning(
                "units of %s are lost, as the guest has other content under their names: %d, such as %s",
                *(self._source, len(lost), lost[0]),
            )

    def _take_units(self) -> int:
        self._torn_units = set()
        sizes = self._guest_fuzzer.sizes(CORPUS)
        self._known.intersection_update(sizes)  # else it would grow: a guest can have other names each time
        names = [
            name
            for name, size in sizes.items()
            if name not in self._known and size <= self._unit_size and len(os.fsencode(name)) <= LONGEST_NAME
        ][:MOST_FILES]
        if not names:
            return 0
        with scratch("harvest") as landing:
            try:
                self._guest_fuzzer.fetch(CORPUS, names, landing)
            finally:  # what has come is taken, even if the guest dies meanwhile
                came = sorted(landing.iterdir())
                result = self._corpus.add(came, self._source)
                self._torn_units = {path.name for path in came if result.torn and _is_torn(path)}
                self._known |= {path.name for path in came} - self._torn_units
                self.added += result.new
        return result.new

    def _take_artifacts(self, over: bool) -> None:
        if not self._reported and not over:
            return
        while self._reported:
            reported = self._reported[0]
            if not isinstance(reported, str):
                if self.failure:
                    return
                self._reported.popleft()
                reported.call()
                with self._room:
                    self._waiting -= reported.weight
                    self._room.notify_all()
                continue
            self._take_if_wanted(reported)
            self._reported.popleft()
        if not self.failure:  # else nobody waits any more: it is too late for the attempt
            self._came()

    def _remove_spent(self) -> None:
        """Delete the artifacts of earlier runs: one that crashes four times a second would fill the guest's disk."""
        spent, self._spent = sorted({*self._spent} - {*self._of_run}), []
        try:
            for directory, paths in groupby(spent, posixpath.dirname):
                self._guest_fuzzer.remove(directory, {posixpath.basename(path) for path in paths})
        except CommandError as error:  # it must not keep the units from being fetched
            log.warning("artifacts of %s stay in the guest: %s", self._source, one_line(str(error)))

    def _take_if_wanted(self, path: str) -> None:
        self._of_run.append(path)
        if len(self._refusals) >= MOST_REFUSALS:
            log.warning("an artifact of %s is not asked for: too many were refused: %s", self._source, one_line(path))
        elif self._wanted(path):
            self._take_artifact(path)

    def _take_artifact(self, path: str) -> None:
        """Fetch one artifact. If the guest does not give it, ask once more, where that may help.

        A refusal must not keep the units from being fetched.
        """
        directory, name = posixpath.split(path)
        left = LARGEST_ARTIFACT - sum(map(len, self.artifacts.values()))
        try:
            with scratch("artifact") as landing:
                self._guest_fuzzer.fetch(directory, [name], landing)
                came = landing / name
                if came.is_file() and came.stat().st_size <= left:
                    self._take_content(path, came.read_bytes())
                else:
                    most = f"more than {readable_size(LARGEST_ARTIFACT)} with those before"
                    what = most if came.is_file() else "not there any more"
                    log.warning("an artifact of %s is left out: it is %s: %s", self._source, what, one_line(path))
        except CommandError as error:
            self._refusals.append(path)
            final = isinstance(error, CommandTimeout | TransferRefused) or self._refusals.count(path) > 1
            if not final and len(self._refusals) < MOST_REFUSALS:
                self._reported.insert(1, path)  # before what was posted after it
            else:
                log.warning("an artifact of %s is left out: %s", self._source, one_line(str(error)))

    def _take_content(self, path: str, content: bytes) -> None:
        """Keep the content of an artifact if it is what the name says; else have it fetched once more."""
        name = posixpath.basename(path)
        if artifacts.is_whole(name, content):
            self.artifacts[name] = content
            self.torn.discard(name)
        elif name not in self.torn:
            self.torn.add(name)
            self._reported.insert(1, path)


def _is_torn(path: Path) -> bool:
    """Whether a unit was fetched while it was still being written, so that it must be fetched again."""
    return files.is_name(path.name) and not files.has_own_name(path)
