"""What the tests of loops in a guest's shell share: shells, a program, and somebody who follows its runs."""

import shutil
import subprocess
from collections.abc import Iterable

from pipeline.errors import FuzzerError
from pipeline.fuzz.loop import RunSplitter
from pipeline.fuzz.symbolizer import Writer
from tests.waiting import SOON

TOKEN = "topcoat-5c1e"
SHELLS = [name for name in ("sh", "busybox") if shutil.which(name)]


def script(*lines: str) -> str:
    return "\n".join(("#!/bin/sh", *lines, ""))


def said_by(shell: str, text: str) -> bytes:
    """What the script writes."""
    words = [shell, "sh"] if shell == "busybox" else [shell]
    return subprocess.run([*words, "-c", text], stdout=subprocess.PIPE, timeout=SOON, check=True).stdout


class Followed:
    """Somebody who follows runs, and writes down what is told."""

    def __init__(self, wanted: int = 1000) -> None:
        self.runs: list[bytes] = []
        self.errors: list[str] = []
        self.paths: list[tuple[int, str]] = []
        self.open = False
        self._wanted = wanted

    def begin(self) -> Writer:
        assert not self.open
        self.open = True
        self.runs.append(b"")
        return self

    def write(self, data: bytes, /) -> int:
        assert self.open
        self.runs[-1] += data
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def found(self, path: str) -> None:
        assert self.open
        self.paths.append((len(self.runs), path))

    def end(self, error: FuzzerError | None) -> bool:
        assert self.open
        self.open = False
        self.errors.append(error.message if error else "")
        return len(self.runs) < self._wanted


def split(pieces: Iterable[bytes], wanted: int = 1000, most: int = 1000) -> tuple[Followed, RunSplitter, list[int]]:
    """What becomes of the output of a loop, the splitter, and how often the loop was ended."""
    followed, ended = Followed(wanted), [0]

    def judged(status: int) -> FuzzerError | None:
        return FuzzerError(str(status), hint="") if status > 1 else None

    def unwanted() -> None:
        ended[0] += 1

    splitter = RunSplitter(TOKEN, most, followed, lambda output: output, judged, unwanted)
    for piece in pieces:
        splitter.write(piece)
    splitter.close()
    return followed, splitter, ended
