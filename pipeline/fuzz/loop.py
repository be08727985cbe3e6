"""A loop in the guest's shell that runs a fuzzer many times, and tells in its output where each run begins and ends.

It costs milliseconds between runs, where a remote command for each would cost half a second. The loop uses nothing but
what busybox's ash has built in: each program more would take time from the fuzzer. What is repeated, and how often, is
in pipeline.fuzz.repetition and pipeline.fuzz.batch.
"""

import re
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import FuzzerError
from pipeline.fuzz.symbolizer import Writer

_LONGEST_MARK = 64  # bytes of what follows the token in a mark
_EXPORTED = re.compile(r"[A-Z_][A-Z0-9_]*")  # names in small letters are the loop's own variables


def new_token() -> str:
    """What begins each mark of a loop. It is random, so that no fuzzer writes it by chance."""
    return f"topcoat-{secrets.token_hex(16)}"


class Runs(Protocol):
    """Somebody who follows runs of a fuzzer, one after the other. All is called in the thread that has them made."""

    def begin(self) -> Writer:
        """Tell that a run begins. Returns where its output goes until its end."""

    def found(self, path: str) -> None:
        """Take the path in the guest of an artifact that the run has just reported. Must not take long."""

    def end(self, error: FuzzerError | None) -> bool:
        """Tell that the run has ended. `error` is the reason if no fuzzer with such arguments should end like that.

        Returns whether another run is wanted. A loop in the guest may have begun one already; it is ended then.
        """


@dataclass(frozen=True)
class Looped:
    """What a loop starts each time."""

    directory: str
    """Where it runs. Nothing else of the guest may work there: what a run has left behind is known by that."""
    program: str
    """Its path, relative to the directory."""
    environment: Mapping[str, str]
    words: Sequence[str]
    """Its arguments, to which the loop adds its own."""

    def script(self, token: str, loop: str) -> str:
        """The whole script: `loop`, and in front of it what all loops need, with `begin` and `end` for the marks.

        They write `TOKEN begin N` and `TOKEN end N STATUS`; the argument of `end` is the status. It ends what the run
        has left running, too.
        """
        named = (
            f"{name}={shlex.quote(value)}" for name, value in self.environment.items() if _EXPORTED.fullmatch(name)
        )
        return _SCRIPT.format(
            directory=shlex.quote(self.directory),
            program=shlex.quote(self.program),
            exports=" ".join(named) or "_=",
            token=token,
            loop=loop,
        )

    @property
    def command(self) -> str:
        """The words for the shell that start it. Variables that the shell cannot or must not have are set by `env`."""
        odd = [f"{name}={value}" for name, value in self.environment.items() if not _EXPORTED.fullmatch(name)]
        return shlex.join([*(["env", *odd] if odd else []), f"{self.directory}/{self.program}", *self.words])


# What is left running works in the fuzzer's directory, as the shell itself does. It is younger than the shell, so that
# the forty kernel threads of a guest need not be looked at; once the last pid is lower, pids have begun anew
_SCRIPT = """cd {directory} 2>&1 || exit 127
export {exports}
clear() {{
  read -r _ _ _ _ last </proc/loadavg
  for p in /proc/[0-9]*; do
    pid=${{p##*/}}
    [ $pid -gt $$ ] || [ $last -lt $$ ] || continue
    if [ "$p/cwd" -ef . ] || [ "$p/exe" -ef {program} ]; then
      [ $pid = $$ ] || kill -9 $pid 2>/dev/null
    fi
  done
}}
run=0
begin() {{ run=$((run + 1)); echo "{token} begin $run"; }}
end() {{ echo "{token} end $run $1"; clear; }}
{loop}
exit 0"""


class RunSplitter:
    """A writer that takes the output of the loop in the guest, and tells `runs` of each run in it.

    Marks count only in their order. What stands outside of runs is dropped. It does not matter how the output was cut.
    """

    def __init__(
        self,
        token: str,
        most: int,
        runs: Runs,
        prepared: Callable[[Writer], Writer],
        judged: Callable[[int], FuzzerError | None],
        unwanted: Callable[[], object],
    ) -> None:
        """Make the writer for the marks of this token, which begin at most `most` runs.

        `prepared` puts stages in front of where a run's output goes, `judged` makes an error of an exit code that no
        fuzzer should have, and `unwanted` ends the loop when no more runs are wanted.
        """
        self._token, self._most = token.encode(), most
        self._mark = re.compile(re.escape(self._token) + rb" (?:begin (\d{1,9})|end (\d{1,9}) (\d{1,3}))\n")
        self._runs, self._prepared, self._judged, self._unwanted = runs, prepared, judged, unwanted
        self._held = b""
        self._output: Writer | None = None
        self._number = 0
        self._wanted = True

    @property
    def running(self) -> bool:
        """Whether a run has begun and not ended."""
        return self._output is not None

    @property
    def begun(self) -> bool:
        """Whether any run has begun."""
        return self._number > 0

    def write(self, data: bytes, /) -> int:
        """Take a piece of output. Returns its length."""
        text, at = self._held + data, 0
        while match := self._mark.search(text, at):
            self._pass_on(text[at : match.start()])
            self._marked(match)
            at = match.end()
        rest = text[at:]
        kept = len(rest) - self._doubtful(rest)
        self._held = rest[kept:]
        self._pass_on(rest[:kept])
        return len(data)

    def flush(self) -> None:
        """Do nothing: what may be part of a mark must wait."""

    def close(self) -> None:
        """Take the end of the output: pass on what was held back."""
        held, self._held = self._held, b""
        self._pass_on(held)

    def _doubtful(self, text: bytes) -> int:
        """How many bytes at the end of `text` may be the beginning of a mark."""
        begun = text.rfind(self._token, -len(self._token) - _LONGEST_MARK)
        if begun >= 0 and b"\n" not in text[begun:]:
            return len(text) - begun
        lengths = range(min(len(self._token) - 1, len(text)), 0, -1)
        return next((length for length in lengths if text.endswith(self._token[:length])), 0)

    def _pass_on(self, text: bytes) -> None:
        if text and self._output:
            self._output.write(text)

    def _may_begin(self, number: int) -> bool:
        return self._wanted and number == self._number + 1 and number <= self._most

    def _marked(self, match: re.Match[bytes]) -> None:
        begun, ended, status = match.groups()
        if begun and not self._output and self._may_begin(int(begun)):
            self._number += 1
            self._output = self._prepared(self._runs.begin())
        elif ended and self._output and int(ended) == self._number:
            self._output.flush()
            self._output = None
            self._wanted = self._runs.end(self._judged(int(status)))
            if not self._wanted:
                self._unwanted()
        else:
            self._pass_on(match[0])
