"""Starting a fuzzer again each time that it has crashed, until its time is over."""

from collections.abc import Collection
from dataclasses import dataclass, field

from pipeline.fuzz.loop import Looped, new_token

LARGEST_SEED = 0x7FFFFFFF
"""The largest seed that is given to libFuzzer. 0 is never given: it would take one of its own."""


def next_seed(seed: int) -> int:
    """The seed of the run after one with this seed."""
    return seed % LARGEST_SEED + 1


@dataclass(frozen=True)
class Repetition:
    """How a fuzzer is started again and again."""

    seconds: float
    """Seconds that all runs may take together, without what is between them."""
    seed: int
    """The seed of the first run; each later one has the next one."""
    most: int
    """The largest number of runs."""
    token: str = field(default_factory=new_token)
    """See pipeline.fuzz.loop."""

    def script(self, looped: Looped, crashes: Collection[int]) -> str:
        """The loop as lines for the guest's shell. The fuzzer is started again after an exit code in `crashes`."""
        loop = _LOOP.format(
            command=looped.command,
            hundredths=max(1, round(self.seconds * 100)),
            most=self.most,
            seed=self.seed,
            largest=LARGEST_SEED,
            crashes="|".join(map(str, sorted(crashes))),
        )
        return looped.script(self.token, loop)


# /proc/uptime has hundredths of seconds
_LOOP = """now() {{ read -r now _ </proc/uptime; now=${{now%.*}}${{now#*.}}; }}
used=0
while [ $run -lt {most} ] && [ $used -lt {hundredths} ]; do
  begin
  now; began=$now
  {command} -seed=$((({seed} + run - 2) % {largest} + 1)) -max_total_time=$((({hundredths} - used + 99) / 100)) \\
    2>&1 >/dev/null
  status=$?
  now; used=$((used + now - began))
  end $status
  case $status in {crashes}) ;; *) break ;; esac
done"""
