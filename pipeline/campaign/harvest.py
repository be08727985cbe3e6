"""Fetching what a fuzzer has found from its guest, while it runs and after it has ended."""

import logging
import os
import posixpath
import threading
from collections import deque
from collections.abc import Callable
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

END_LIMIT = 900.0
"""Seconds for all that is still to be fetched after a run, however well each transfer goes."""


class Harvest:
    """What one run of a fuzzer finds, fetched by a thread: at intervals from `start` on, and a last time at `end`.

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
    ) -> None:
        """Harvest each `every` seconds what `workspace` does not list as known; what is fetched is added to that list.

        Units of more than `unit_size` bytes are not fetched. Artifacts come first, as there may be many units; `came`
        is called, in the thread, once they have been fetched.
        """
        self.added = 0
        """The number of units that the corpus did not have before."""
        self.artifacts: dict[str, bytes] = {}
        """The contents of the reported artifacts that were fetched, by name."""
        self.torn: set[str] = set()
        """Names of artifacts whose content, as the guest gave it, is not what their names say."""
        self.failure: StoreError | CommandTimeout | None = None
        self._workspace, self._guest_fuzzer, self._known = workspace, workspace.guest_fuzzer, workspace.known
        self._corpus, self._source = corpus, source
        self._every, self._unit_size, self._came = every, unit_size, came
        self._reported: deque[str] = deque()
        self._refusals: list[str] = []
        """Paths of the artifacts that the guest did not give, once for each time that it was asked."""
        self._torn_units: set[str] = set()
        """Names of the units that were not whole when units were fetched last."""
        self._seen = 0
        self._wake = threading.Event()
        self._ended = self._over = False

    def found(self, path: str) -> None:
        """Have the thread fetch an artifact that was just reported, unless there were MOST_ARTIFACTS before."""
        self._seen += 1
        if self._seen <= MOST_ARTIFACTS:
            self._reported.append(path)
            self._wake.set()

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
                    added = self.take()
                    if self.failure:  # nobody waits for this thread any more
                        return
                    harvested(added)
                self.finish()
            except StoreError as error:
                self.failure = self.failure or error
                failed()

        return Worker("harvest", work)

    def _woken(self) -> bool:
        """Wait until the next harvest is due. Returns whether it is the last one."""
        self._wake.wait(self._every)
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

    def take(self) -> int:
        """Fetch what is new. Returns the number of units that the corpus did not have. Raises StoreError."""
        try:
            over = self._over and not self._ended
            self._take_artifacts(over)
            return 0 if over else self._take_units()
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
        while self._reported and len(self._refusals) < MOST_REFUSALS:
            self._take_artifact(self._reported[0])
            self._reported.popleft()
        if self._reported:
            log.warning("%d more artifacts of %s are not asked for", len(self._reported), self._source)
            self._reported.clear()
        if not self.failure:  # else nobody waits any more: it is too late for the attempt
            self._came()

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
                self._reported.append(path)
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
            self._reported.append(path)


def _is_torn(path: Path) -> bool:
    """Whether a unit was fetched while it was still being written, so that it must be fetched again."""
    return files.is_name(path.name) and not files.has_own_name(path)
