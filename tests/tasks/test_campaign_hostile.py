"""Campaigns with the real QEMU and the real Linux guest, in which the fuzzer is a program that means harm."""

import os
import re
import select
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline.campaign import ledger
from pipeline.campaign.ledger import Ended, LedgerEntry, Merged
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.crashes.crash import OUTPUT_LIMIT
from tests.conftest import Workspace, qemus_of

FUZZER = "example-fuzzers/noop_fuzzer"
SECONDS = 3
BUDGET = ("--budget", f"{SECONDS}s", "--slice-length", f"{SECONDS}s")
SLICE = ("RunFuzzer", "--name", "nightly", "--fuzzer", FUZZER, *BUDGET)
CAMPAIGN = ("FuzzCampaign", "--name", "nightly", "--fuzzers", FUZZER, *BUDGET)
LIMIT = 60
MEMORY = 256 << 20
MARK = "escaped-from-the-guest"
"""Nothing on the host may have a name that begins so."""

pytestmark = pytest.mark.timeout(2 * LIMIT)

HURRIED = "from pipeline.campaign import work\nwork.GRACE, work.UNIT_TIMEOUT = 4.0, 1\nimport tasks\n"
"""A fuzzer that does not end by itself is given 85 s to end after its time; nobody waits as long here."""

LENDER = """
import sys
from contextlib import closing
from pipeline.host.deadline import Deadline
from pipeline.vm.pool import Pool
from pipeline.vm.qemu.pooled import QemuGuests
from pipeline.ssh.connector import Connector
from tasks.boot import key_of_boot
from tasks.engine.context import context
chosen, build = context().settings, context().build
guests = QemuGuests(chosen, build, "ssh", lambda: key_of_boot(context().digests))
with Pool(chosen, guests) as pool:
    with pool.lease(Deadline(60)) as lease:
        timeouts = chosen.boot.timeouts("kvm" if "-enable-kvm" in lease.handle.argv else "tcg")
        with closing(Connector(lease.handle.ssh, timeouts)) as guest:
            guest.put(sys.argv[1], "/tmp/played")
            played = "/tmp/played/" + sys.argv[2].rpartition("/")[2]
            guest.command(f"chmod 755 {played} && mount -o bind {played} {sys.argv[2]}", shell=True).run(60)
            if sys.argv[3]:
                guest.command(sys.argv[3], shell=True).run(60)
    print(lease.handle.boot_id, flush=True)
    sys.stdin.read()
"""
"""Boots the guest that the campaign will be lent, puts another program over the target in it, and runs a command."""

SHELLS = {
    "floods": "/bin/busybox yes GARBAGE >&2 & exec /bin/busybox yes GARBAGE",
    "drips": "while :; do printf x; /bin/busybox sleep 1; done",
    "does nothing": "exit 0",
    "kills itself": "kill -9 $$",
}
"""What the guest's shell does instead of any command."""


def as_shell(program: str) -> str:
    """A command for the guest, after which its shell is this script."""
    script = shlex.quote(f"#!/bin/busybox sh\n{program}\n")
    return f"printf %s {script} >/bin/harm && chmod 755 /bin/harm && ln -sf harm /bin/sh"


FLOOD = """#!/bin/sh
echo input >tmp/crash-flood
exec awk '
function put(text) { printf "%s", text; sent += length(text) }
BEGIN {
    block = "GARBAGE"
    while (length(block) < 16000) block = block block
    while (sent < 10e9) {
        put(block)
        put(sprintf("\\n#%.0f\\tpulse  cov: 9 ft: 9 corp: 9/9b lim: 9 exec/s: 9 rss: 31Mb\\n", sent))
        if (!told && sent > 1e6) {
            told = 1
            put("==1== ERROR: libFuzzer: deadly signal\\nSUMMARY: libFuzzer: deadly signal\\n")
            put("Test unit written to tmp/crash-flood\\n")
        }
    }
}' >&2
"""
"""It would write 10 GB, whatever its time is. How much it has written it tells as the number of its runs."""

FLOODS = {
    "lines": r"#7\tNEW    cov: 3 ft: 3 corp: 2/2b\nAA\033[31mBB\001\n==1== ERROR: libFuzzer\nstat::rss: 1\n",
    "short lines": r"ab\n",
    "long lines": r"garbage \033]0;",
}

NAMES = r"""#!/bin/sh
exec >&2
written() { echo "Test unit written to $1"; }
saved() { echo "Input saved to '$1'"; }
for where in tmp/corpus tmp/merged tmp; do
    mkdir -p $where/$(printf %040d 1)/MARK $where/crash-directory
    mkfifo $where/$(printf %040d 2) $where/crash-fifo
    ln -s /etc/passwd $where/$(printf %040d 3)
    ln -s /etc/passwd $where/crash-link
    ln -s ../../../../MARK $where/MARK
done
printf unit >tmp/corpus/$(printf unit | sha1sum | cut -c 1-40)
head -c 2000 /dev/zero >tmp/corpus/large
for name in ODD; do
    printf '%s' "unit $name" >"tmp/corpus/$name"
    printf '%s' "merged $name" >"tmp/merged/$name"
    printf '%s' "crash $name" >"tmp/$name"
done
n=0
for where in ../.. / ../../../../.. /tmp; do
    n=$((n + 1))
    echo "outside $where" >$where/MARK$n
    written $where/MARK$n
done
for name in link fifo directory gone; do written tmp/crash-$name; done
written /etc/passwd
written "$(printf %04096d 0)"
written ..
saved ../..
saved ../../MARK
for name in ODD; do saved "tmp/$name"; written "tmp/$name"; done
echo '#9	pulse  cov: 9 ft: 9 corp: 9/9b lim: 9 exec/s: 9 rss: 31Mb'
sleep 3
echo '==1== ERROR: libFuzzer: deadly signal'
printf '    #1 0x1 in ../../MARK\033[31m ../../MARK:1:1\n'
echo 'SUMMARY: ../../MARK: deadly signal'
exit 77
"""
"""It tells of artifacts, and fills its corpus, with all that is no name, no file, or none that was asked for."""

MEASURER = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as stream:
    stream.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""
"""Runs a command and writes its peak. A child of this very process would begin with the peak of that."""

ODD = (
    *("two\nlines", "red\033[31m\033]0;MARK\007", "latin\udcff", "...", "-rf", "*", " ", "$(touch MARK)"),
    *("`touch MARK`;touch MARK", r"..\..\MARK", "..%2f..%2fMARK", "0" * 255, ".topcoat-0000000000000000.part"),
)
"""As far from a name as a file can have it."""


T = TypeVar("T", bound=LedgerEntry)

Listing = Mapping[Path, tuple[int, int, int]]
"""Of all that is below a directory: mode, size and time of change."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it took."""

    status: int
    text: str
    memory: int
    """Bytes: the peak of its process, or of the largest one that it has waited for."""


class Hostile:
    """A workspace whose campaigns are lent a guest in which the fuzzer has been replaced."""

    def __init__(self, workspace: Workspace, directory: Path) -> None:
        self.workspace, self.directory = workspace, directory
        self.temporary, self.said, self.program = (directory / name for name in ("temporary", "said", "program"))
        for made in (self.temporary, self.program):
            made.mkdir()
        self.said.touch()
        self.peak = directory / "peak"
        workspace.module("hurried", HURRIED)
        workspace.environment |= {"TMPDIR": str(self.temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        workspace.configure(
            "[pool]\nsize = 1\nfresh = never\n[campaign]\nharvest = 1s\nstrikes = 1\nunit_size = 1000\ncanary = off\n"
        )

    @contextmanager
    def lent(self, program: str = "#!/bin/sh\n", command: str = "") -> Iterator[None]:
        """The guest, in which the fuzzer is this program, and a command was run."""
        file = self.program / FUZZER.rpartition("/")[2]
        script = program.startswith("#!")
        file.write_bytes(os.fsencode(program.replace("MARK", MARK) if script else program))
        with subprocess.Popen(
            [sys.executable, "-c", LENDER, str(file), f"/targets/files/{FUZZER}", command],
            cwd=self.workspace.directory,
            env=self.workspace.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as lender:
            assert lender.stdout
            self.boot = lender.stdout.readline().decode().strip()
            yield

    def run(self, *words: str, limit: float = LIMIT) -> Outcome:
        """Run luigi, which is lent the guest."""
        command = self.workspace.command("luigi", "--module", "hurried", *words)
        with self.said.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", MEASURER, str(self.peak), *command],
                cwd=self.workspace.directory,
                env=self.workspace.environment,
                stdout=stream,
                stderr=stream,
            )
        with open(os.pidfd_open(process.pid)) as ended:
            if not select.select([ended], [], [], limit)[0]:
                process.kill()
        status = process.wait()
        first = self.of(ledger.Started)[0]
        assert first.boot_id == self.boot, "it had the guest that was prepared"
        return Outcome(status, self.said.read_text(), int(self.peak.read_text()) << 10)

    def of(self, kind: type[T]) -> list[T]:
        entries = ledger.read(self.workspace.store.campaigns / "nightly/ledger.jsonl")
        return [one for one in entries if isinstance(one, kind)]

    def listing(self) -> Listing:
        facts = {path: path.lstat() for path in self.directory.rglob("*")}
        return {
            path: (one.st_mode, 0, 0) if stat.S_ISDIR(one.st_mode) else (one.st_mode, one.st_size, one.st_mtime_ns)
            for path, one in facts.items()
        }


def size(listing: Listing) -> int:
    return sum(size for _, size, _ in listing.values())


@pytest.fixture
def hostile(demo: Workspace, tmp_path: Path) -> Iterator[Hostile]:
    made = Hostile(demo, tmp_path)
    yield made
    assert qemus_of(demo.directory) == []
    assert [path for path in made.temporary.rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize("kind", FLOODS)
def test_output_without_end_is_cut_and_its_slice_ends(hostile: Hostile, kind: str) -> None:
    """As fast as the guest can write: an emulated one 2 to 6 MB each second, some 50 MB in all."""
    with hostile.lent(FLOOD.replace("GARBAGE", FLOODS[kind])):
        before = hostile.listing()
        done = hostile.run(*SLICE)
    assert done.status == 0, done.text
    assert "Traceback" not in done.text
    (ended,) = hostile.of(Ended)
    assert ended.result == "crash"
    assert ended.seconds >= SECONDS
    print(f"{ended.executions} bytes came in {ended.seconds} s, and luigi took {done.memory >> 20} MiB")
    assert ended.executions > 2e6, "so many bytes came at least"
    assert done.memory < MEMORY
    (output,) = hostile.workspace.store.crashes.glob("*/*/*/1/output.txt")
    assert 0 < output.stat().st_size < OUTPUT_LIMIT + 100
    assert b"\033" not in output.read_bytes()
    (program,) = (hostile.workspace.store.crashes / ".files").iterdir()
    assert program.stat().st_nlink > 1, "it takes no room"
    assert size(hostile.listing()) - program.stat().st_size - size(before) < OUTPUT_LIMIT + 100_000


def test_no_name_leads_out_of_the_store(hostile: Hostile) -> None:
    store = hostile.workspace.store
    with hostile.lent(NAMES.replace("ODD", " ".join(map(shlex.quote, ODD)))):
        before = hostile.listing()
        done = hostile.run(*CAMPAIGN)
        after = hostile.listing()
    assert done.status == 0, done.text
    assert "Traceback" not in done.text
    assert "\033" not in done.text
    assert [one.result for one in hostile.of(Ended)] == ["crash"]
    assert [one.reason for one in hostile.of(Merged)] == ["nothing came of it"]

    written = {path for path, what in after.items() if before.get(path) != what}
    places = (store.campaigns, store.crashes, store.root / "corpora")
    inside = {path for path in written if any(path.is_relative_to(place) for place in places)}
    logs = {path for path in written & before.keys() if path.is_relative_to(store.instances)}
    assert written - inside - logs == {hostile.said, hostile.peak, store.cache / "digests.jsonl"}
    assert [path for path in inside if not re.fullmatch(r"[\w.-]{1,80}", path.name)] == []
    assert {stat.S_IFMT(after[path][0]) for path in inside} == {stat.S_IFREG, stat.S_IFDIR}
    assert [path for path in hostile.directory.parents if any(path.glob(f"{MARK}*"))] == []

    told = [path.read_bytes() for path in inside if path.suffix in (".txt", ".json", ".jsonl")]
    assert [text for text in told if b"\033" in text] == []
    inputs = {path.read_bytes() for path in store.crashes.rglob("input")}
    odd = [os.fsencode(name.replace("MARK", MARK)) for name in ODD]
    assert inputs >= {b"outside /\n", b"outside ../..\n", *(b"crash " + name for name in odd[1:6])}
    corpus = Corpus.of(store.root, FUZZER)
    units = {corpus.path(name).read_bytes() for name in corpus.units()}
    assert units == {b"unit", *(b"unit " + name for name in odd)}


def test_one_that_is_benched_by_a_slice_of_its_own_is_told(hostile: Hostile) -> None:
    with hostile.lent("#!/bin/sh\nexit 3\n"):
        done = hostile.run(*SLICE)
    assert [one.result for one in hostile.of(Ended)] == ["failed"]
    assert "unexpected return code: 3" in done.text
    assert done.status == 30, done.text
    assert "Traceback" not in done.text
    assert "hint: " in done.text


@pytest.mark.timeout(6 * LIMIT)
@pytest.mark.parametrize("kind", SHELLS)
def test_a_guest_whose_shell_is_hostile_is_replaced(hostile: Hostile, kind: str) -> None:
    hostile.workspace.configure("[pool]\nsize = 1\nfresh = on_crash\n[campaign]\nharvest = 1s\ncanary = off\n")
    with hostile.lent(command=as_shell(SHELLS[kind])):
        began = time.monotonic()
        done = hostile.run(*SLICE, limit=5 * LIMIT)
        print(f"{kind}: {time.monotonic() - began:.0f} s, {done.memory >> 20} MiB")
    print(done.text)
    assert "Traceback" not in done.text
    assert done.memory < MEMORY
    first, *others = hostile.of(Ended)
    assert first.result in ("failed", "guest died", "hang")
    assert [one.result for one in others] == ["done"]
    assert done.status == 0
