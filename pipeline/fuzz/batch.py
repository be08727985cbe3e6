"""Running a fuzzer once on each of many inputs, each time in a process of its own."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.fuzz.loop import Looped, new_token


@dataclass(frozen=True)
class Batch:
    """The inputs on which a fuzzer is run, and for how long."""

    inputs: Sequence[str]
    """Their paths in the order of the runs, each behind the other arguments of its run. One may be there many times.

    All of them are in one command line, of which dropbear takes 9,000 bytes: some hundred of short paths.
    """
    seconds: float
    """Seconds that each run may take, with what is between it and the one before."""
    token: str = field(default_factory=new_token)
    """See pipeline.fuzz.loop."""

    @property
    def most(self) -> int:
        """The number of runs."""
        return len(self.inputs)

    def script(self, looped: Looped) -> str:
        """The loop as lines for the guest's shell. It goes on whatever becomes of a run."""
        return looped.script(self.token, _LOOP.format(inputs=shlex.join(self.inputs), command=looped.command))


_LOOP = """for input in {inputs}; do
  begin
  {command} "$input" 2>&1 >/dev/null
  end $?
done"""
