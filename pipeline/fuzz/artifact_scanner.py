"""A stage that finds the artifacts of a run in its output, and renames files there as the caller knows them."""

import logging
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from pipeline.fuzz.arguments import MUTABLE, Arguments
from pipeline.fuzz.line_scanner import LineScanner

log = logging.getLogger("topcoat")

MOST = 10_000
"""How many artifacts are noted at most. No run has as many, but a guest can claim so."""

_LONGEST_PATH = 4095
_RESULT = b"/tmp/result_input"
_ANY_CORPUS = b"/tmp/live_corpus"

_WRITTEN = re.compile(rb"Test unit written to ([^\t\n\f\r ]+)")
_SAVED = re.compile(rb"(?:Input saved|Minimized input written) to '([^']+)'")
_RUNNING = re.compile(rb"Running: tmp/.")
_RUNNING_ANY = re.compile(rb"Running: /tmp/temp_corpus")
_FOUND_ANY = b"files found in " + _ANY_CORPUS
_FOUND = re.compile(rb"[0-9] files found in tmp/")
_OUTPUT_CORPUS = re.compile(rb"Using '([^']+)' as the output corpus.", re.DOTALL)
_TEST_INPUT = re.compile(rb"Using '([^']+)' as the test input.", re.DOTALL)
_MARKS = (b"Test unit written to ", b" to '", b"files found in ", b"Using '")
_MARKS_AT_START = (b"Running: ",)


class ArtifactScanner(LineScanner):
    """A stage that notes the path of each artifact that the fuzzer reports, and rewrites lines that name files.

    ClusterFuzz reads these lines: that of an artifact names the path at which it will be found on the host.
    """

    def __init__(
        self, arguments: Arguments, artifact_directory: Path | None, noted: Callable[[str], object] | None = None
    ) -> None:
        """Make a scanner for a run with these arguments; `artifact_directory` is where artifacts will lie on the host.

        `noted` gets the path of each artifact once, as the fuzzer writes it, as soon as its line has come.
        """
        super().__init__(_MARKS, _MARKS_AT_START)
        self._noted = noted
        self._inside = os.fsencode(arguments.artifact_directory)
        self._host = None if artifact_directory is None else os.fsencode(artifact_directory)
        self._artifacts: dict[bytes, None] = {}
        self._warned = False
        self._output_corpus = b""
        self._test_input = b""

    @property
    def artifacts(self) -> list[str]:
        """The paths of the artifacts, as the fuzzer writes them, each once."""
        return [os.fsdecode(path) for path in self._artifacts]

    def look(self, line: bytes) -> bytes:
        """See LineScanner. The first rule that fits rewrites the line; a rule that does not fit returns None."""
        for rule in (self._written, self._saved, self._running, self._found):
            changed = rule(line)
            if changed is not None:
                return changed
        self._remember(line)
        return line

    def _written(self, line: bytes) -> bytes | None:
        match = _WRITTEN.search(line)
        if match is None:
            return None
        if match[1] == _RESULT:
            return b""
        self._note(match[1])
        # The directory stands in artifact_prefix='…', and in the path
        return line if self._host is None else line.replace(self._inside, self._host, 2)

    def _saved(self, line: bytes) -> bytes | None:
        match = _SAVED.search(line)
        if match is None:
            return None
        name = posixpath.basename(match[1])
        self._note(MUTABLE.encode() + name)
        directory = b"tmp" if self._host is None else self._host
        return b"artifact_prefix='%b/'; Test unit written to %b/%b" % (directory, directory, name)

    def _running(self, line: bytes) -> bytes | None:
        if _RUNNING.match(line):
            return _as_data(line)
        if _RUNNING_ANY.match(line):
            return b"Running: " + self._test_input if self._test_input else line
        return None

    def _found(self, line: bytes) -> bytes | None:
        if _FOUND_ANY in line:
            return line.replace(_ANY_CORPUS, self._output_corpus or _ANY_CORPUS, 1)
        return _as_data(line) if _FOUND.search(line) else None

    def _remember(self, line: bytes) -> None:
        if match := _OUTPUT_CORPUS.search(line):
            self._output_corpus = _as_data(match[1])
        elif match := _TEST_INPUT.search(line):
            self._test_input = _as_data(match[1])

    def _note(self, path: bytes) -> None:
        if posixpath.basename(path) in (b"", b".", b"..") or len(path) > _LONGEST_PATH or b"\0" in path:
            self._warn("one that can be no file")
        elif path in self._artifacts:
            return
        elif len(self._artifacts) < MOST:
            self._artifacts[path] = None
            if self._noted:
                self._noted(os.fsdecode(path))
        else:
            self._warn(f"more than {MOST}")

    def _warn(self, text: str) -> None:
        if not self._warned:
            log.warning("the fuzzer tells of artifacts that are left out: %s", text)
            self._warned = True


def _as_data(text: bytes) -> bytes:
    return text.replace(b"tmp/", b"data/", 1)
