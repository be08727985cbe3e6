"""Taking what a fuzzer has found from its guest, while it runs and when it has ended."""

import logging
import os
import posixpath
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pipeline.campaign.guests import Room
from pipeline.campaign.site import CORPUS
from pipeline.corpus import Corpus, files
from pipeline.crashes import artifacts
from pipeline.errors import CommandError, CommandTimeout, ConnectError, StoreError, TransferRefused
from pipeline.scratch import scratch
from pipeline.size import readable
from pipeline.text import one_line
from pipeline.worker import Worker

log = logging.getLogger("topcoat")

MOST_FILES = 20_000
"""Files that are fetched at once."""

MOST_ARTIFACTS = 16
"""Artifacts of one run that are fetched."""

MOST_REFUSALS = 3
"""Artifacts of one run that the guest does not give, and no more are asked for: each can take a minute to fail."""

LONGEST_NAME = 255
"""Bytes. Whoever asks for a longer one gets nothing at all."""

LARGEST_ARTIFACT = 64 << 20
"""Bytes of an artifact. A fuzzer makes none as large, but a guest can claim so."""

JOIN_LIMIT = 300.0
"""Seconds that a harvest under way may take to end."""


class Harvest:
    """What one run of a fuzzer brings: fetched in a thread from `start` to `end`, and by `take`.

    A guest that does not answer is no error here: what has come is kept, and the run will tell. A store that takes no
    more is: `failed` is called then, and `failure` has the reason.
    """

    def __init__(
        self,
        room: Room,
        corpus: Corpus,
        source: str,
        every: float,
        unit_size: int,
        came: Callable[[], object] = lambda: None,
    ) -> None:
        """What the room is known to hold is not fetched; it grows. `came` is called once artifacts have been fetched.

        Of both, by any thread, the artifacts are first: there may be many units.
        """
        self.added = 0
        """Units that the corpus did not have."""
        self.artifacts: dict[str, bytes] = {}
        """What was fetched of those that were reported, by their names."""
        self.torn: set[str] = set()
        """Names of artifacts of which the guest gave something else than their names say."""
        self.failure: StoreError | None = None
        self._room, self._site, self._known = room, room.site, room.known
        self._corpus, self._source = corpus, source
        self._every, self._unit_size, self._came = every, unit_size, came
        self._reported: deque[str] = deque()
        self._refusals: list[str] = []
        """What the guest did not give, each time that it was asked."""
        self._torn_units: set[str] = set()
        """Those of the last time."""
        self._seen = 0
        self._wake = threading.Event()
        self._ended = False
        self._lock = threading.Lock()

    def found(self, path: str) -> None:
        """An artifact was reported: it is fetched at once, by the thread."""
        self._seen += 1
        if self._seen <= MOST_ARTIFACTS:
            self._reported.append(path)
            self._wake.set()

    def start(self, harvested: Callable[[int], None], failed: Callable[[], None]) -> Worker:
        """Begin to harvest in a thread. `harvested` is told after each time how many units came."""

        def work() -> None:
            while not self._woken():
                try:
                    harvested(self.take())
                except StoreError as error:
                    self.failure = error
                    failed()
                    return

        return Worker("harvest", work)

    def _woken(self) -> bool:
        """Wait for the next time. Whether it is the end instead."""
        self._wake.wait(self._every)
        self._wake.clear()
        return self._ended

    def end(self, worker: Worker) -> None:
        """End the thread, and wait for it. Raises what it raised."""
        self._ended = True
        self._wake.set()
        if not worker.join(JOIN_LIMIT):
            log.error("the harvest of %s still hangs after %g s", self._source, JOIN_LIMIT)
        if worker.failure:
            raise worker.failure

    def take(self) -> int:
        """Fetch what is new. Returns how many units the corpus did not have. Raises StoreError."""
        with self._lock:
            try:
                self._take_artifacts()
                return self._take_units()
            except (ConnectError, CommandError) as error:
                log.warning("harvesting %s: %s", self._source, one_line(str(error)))
                return 0

    def finish(self) -> None:
        """Fetch what is new once the fuzzer has ended: what is still not whole then is lost. Raises StoreError."""
        self.take()
        if lost := sorted(self._torn_units - self._room.lost):
            self._room.lost.update(lost)
            log.warning(
                "units of %s are lost, as the guest has other content under their names: %d, such as %s",
                *(self._source, len(lost), lost[0]),
            )

    def _take_units(self) -> int:
        self._torn_units = set()
        names = [
            name
            for name, size in self._site.sizes(CORPUS).items()
            if name not in self._known and size <= self._unit_size and len(os.fsencode(name)) <= LONGEST_NAME
        ][:MOST_FILES]
        if not names:
            return 0
        with scratch("harvest") as landing:
            try:
                self._site.fetch(CORPUS, names, landing)
            finally:  # what has come is taken, also of a guest that dies meanwhile
                came = sorted(landing.iterdir())
                result = self._corpus.add(came, self._source)
                self._torn_units = {path.name for path in came if result.torn and _is_torn(path)}
                self._known |= {path.name for path in came} - self._torn_units
                self.added += result.new
        return result.new

    def _take_artifacts(self) -> None:
        if not self._reported:
            return
        while self._reported and len(self._refusals) < MOST_REFUSALS:
            self._take_artifact(self._reported[0])
            self._reported.popleft()
        if self._reported:
            log.warning("%d more artifacts of %s are not asked for", len(self._reported), self._source)
            self._reported.clear()
        self._came()

    def _take_artifact(self, path: str) -> None:
        """Fetch it. What the guest does not give must not keep the units from being fetched.

        It is asked once more, if that may help.
        """
        directory, name = posixpath.split(path)
        try:
            with scratch("artifact") as landing:
                self._site.fetch(directory, [name], landing)
                came = landing / name
                if came.is_file() and came.stat().st_size <= LARGEST_ARTIFACT:
                    self._take_content(path, came.read_bytes())
                else:
                    what = f"larger than {readable(LARGEST_ARTIFACT)}" if came.is_file() else "not there any more"
                    log.warning("an artifact of %s is left out: it is %s: %s", self._source, what, one_line(path))
        except CommandError as error:
            self._refusals.append(path)
            final = isinstance(error, CommandTimeout | TransferRefused) or self._refusals.count(path) > 1
            if not final and len(self._refusals) < MOST_REFUSALS:
                self._reported.append(path)
            else:
                log.warning("an artifact of %s is left out: %s", self._source, one_line(str(error)))

    def _take_content(self, path: str, content: bytes) -> None:
        """Keep it, unless it is not what its name says: then it is fetched once more."""
        name = posixpath.basename(path)
        if artifacts.is_whole(name, content):
            self.artifacts[name] = content
            self.torn.discard(name)
        elif name not in self.torn:
            self.torn.add(name)
            self._reported.append(path)


def _is_torn(path: Path) -> bool:
    """Whether it was fetched while it was being written, and must be fetched again."""
    return files.is_name(path.name) and not files.has_own_name(path)
