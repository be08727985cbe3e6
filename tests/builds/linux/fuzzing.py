"""The Linux guest's fuzzers, run once in the real guest for all tests that look at what they said."""

import json
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import settings
from pipeline.builds import build
from pipeline.builds.demo import TARGETS
from pipeline.builds.demo.planted import PLANTED
from pipeline.builds.targets import sources
from pipeline.fuzz.symbolizer import Symbolizer
from tests.conftest import Workspace

PACKAGE = sources.read(TARGETS).package
NAMES = [target.name for target in sources.read(TARGETS).targets]
_START, _END = "@@@ start", "@@@ status"


@dataclass(frozen=True)
class Run:
    """What one run in the guest said, with names in its stacks, and how it ended."""

    status: int
    text: str


def program(name: str) -> str:
    return f"/data/fuzz/{PACKAGE}/{name}/pkg/{name}"


def commands() -> Mapping[str, str]:
    """By label, the lines for the guest's shell: each fuzzer does what it is made for, each planted bug is reached."""
    found = {
        "crash": f"{program('crash_fuzzer')} -seed=1 -runs=300000",
        "memory": f"{program('out_of_memory_fuzzer')} -seed=1 -rss_limit_mb=64",
        "noop": f"{program('noop_fuzzer')} -seed=1 -runs=1000",
        "noisy": f"{program('noisy_fuzzer')} -runs=20 >/tmp/out 2>/tmp/err; wc -l </tmp/out; grep -c stderr: /tmp/err",
        "artifact": "cat /tmp/found/crash-*",
    }
    for name in ("maze_fuzzer", "parser_fuzzer"):
        found[f"seeds {name}"] = (
            f"cd /data/fuzz/{PACKAGE}/{name} && pkg/{name} -dict=pkg/{name}.dict -runs=0 pkg/{name}_seed_corpus"
        )
    for number, bug in enumerate(PLANTED):
        written = "".join(f"\\{byte:03o}" for byte in bug.input)
        # On a loaded host others might take so long too
        limit = "-timeout=2 " if "timeout" in bug.report else ""
        found[f"bug {number}"] = f"printf {shlex.quote(written)} >in; {program(bug.fuzzer)} {limit}in"
    return found


def run_all(workspace: Workspace) -> dict[str, Run]:
    """Run all commands in the guest i0, and what they said through the build's symbolizer."""
    lines = ["mkdir -p /tmp/found && cd /tmp/found"]
    for label, command in commands().items():
        lines += [f"echo '{_START} {label}'", f"({command}) 2>&1 </dev/null", f'status=$?; echo; echo "{_END} $status"']
    outcome = workspace.topcoat("ssh", "i0", "--", "sh", stdin="\n".join(lines).encode())
    assert outcome.status == 0, outcome.text
    chosen = build.load(settings.load({"TOPCOAT_ROOT": str(workspace.store.root)}, workspace.directory), {})
    done = subprocess.run(Symbolizer.of(chosen).argv, input=outcome.stdout, capture_output=True, check=True)
    return dict(_parsed(done.stdout.decode(errors="replace")))


def _parsed(text: str) -> dict[str, Run]:
    found = {}
    for part in text.split(f"{_START} ")[1:]:
        label, _, rest = part.partition("\n")
        said, _, status = rest.rpartition(f"{_END} ")
        found[label] = Run(int(status), said)
    return found


def save(runs: Mapping[str, Run], path: Path) -> None:
    path.write_text(json.dumps({label: asdict(run) for label, run in runs.items()}))


def load(path: Path) -> dict[str, Run]:
    return {label: Run(**run) for label, run in json.loads(path.read_text()).items()}
