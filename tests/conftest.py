"""Fixtures for all tests: a workspace of one's own, a bundle with scripted tools, the real Linux guest."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.host.locks import locked
from pipeline.host.process import Process
from pipeline.images import cpio
from pipeline.settings import Store
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.stopping import stop

settings.register_profile("topcoat", deadline=None, database=None)
settings.load_profile("topcoat")

# Where large files may lie: /tmp is in memory on Debian 13. Read by pytest where it makes directories for tests
if "TMPDIR" not in os.environ:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/var/tmp")

FAKES = Path(__file__).parent / "fakes"
BIN = Path(sys.executable).parent


@dataclass
class Workspace:
    """A directory to run Topcoat's commands in, with a store of its own."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    command_directory: Path | None = None
    """Where commands run, if not in `directory`."""

    @property
    def store(self) -> Store:
        return Store(Path(self.environment.get("TOPCOAT_ROOT", self.directory / "out")))

    def instance(self, name: str = "i0") -> Instance:
        return Instance.named(self.store, name)

    def configure(self, text: str) -> None:
        (self.directory / "luigi.cfg").write_text(text)

    def module(self, name: str, text: str) -> None:
        """A module that `luigi --module NAME` finds: to define tasks, or to play what else cannot be provoked."""
        (self.directory / f"{name}.py").write_text(text)
        self.environment["PYTHONPATH"] = str(self.directory)

    def command(self, *words: str) -> list[str]:
        return [str(BIN / words[0]), *words[1:]]

    def run(self, *words: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> "Outcome":
        """Run one of the project's commands to its end."""
        done = subprocess.run(
            self.command(*words),
            cwd=self.command_directory or self.directory,
            env={**self.environment, **(environment or {})},
            input=stdin,
            capture_output=True,
            timeout=200,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def luigi(self, *words: str, **more: str) -> "Outcome":
        """Run `luigi --module tasks …` with further environment variables."""
        return self.run("luigi", "--module", "tasks", *words, environment=more)

    def topcoat(self, *words: str, stdin: bytes = b"") -> "Outcome":
        return self.run("topcoat", *words, stdin=stdin)

    def files(self) -> list[str]:
        """All files of the store but locks, relative."""
        found = (path for path in self.store.root.rglob("*") if path.is_file() and path.suffix != ".lock")
        return sorted(str(path.relative_to(self.store.root)) for path in found)


@dataclass
class Outcome:
    """How a command ended and what it said."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return (self.stdout + self.stderr).decode()


def qemus_of(directory: Path) -> list[Process]:
    """All living processes with a pidfile below `directory` on their command line; those of other roots are others'."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        pidfiles = [after for word, after in itertools.pairwise(words) if word == b"-pidfile"]
        if any(pidfile.startswith(os.fsencode(directory) + b"/") for pidfile in pidfiles):
            process = Process.find(int(entry.name))
            found += [process] if process and process.shares(directory) else []
    return found


def processes_with(text: bytes) -> list[str]:
    """The command lines of living processes with the same root that hold this text, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text in words and (process := Process.find(int(entry.name))) and process.shares(Path("/")):
                found.append(f"{entry.name} {words.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
    return found


@pytest.fixture(scope="session", autouse=True)
def no_qemu_outlives_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    left = qemus_of(tmp_path_factory.getbasetemp())
    for process in left:
        process.send(signal.SIGKILL)
    assert not left, f"QEMUs of the tests still ran at their end: {left}"


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """What SIGINT, SIGTERM and SIGHUP usually do, whatever this process has imported.

    Importing `tasks` takes over all, and after the first one all are ignored, here and in all that is started later.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def new_workspace(directory: Path) -> Iterator[Workspace]:
    """An empty workspace. Whatever runs in it at the end is stopped."""
    directory.mkdir()
    # Compiling all modules anew in each of hundreds of processes takes a third of their time
    left_out = ("FUCHSIA_", "TOPCOAT_", "LUIGI_", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    path = f"{BIN}:{kept['PATH']}"
    made = Workspace(directory, {**kept, "PATH": path})
    try:
        yield made
    finally:
        for instance in Instance.all(made.store):
            stop(instance, 10)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """An empty workspace. Whatever runs in it at the end is stopped."""
    with new_workspace(tmp_path / "work") as made:
        yield made


@pytest.fixture
def bundle(workspace: Workspace) -> Workspace:
    """A workspace whose build is a ClusterFuzz bundle with scripted qemu, zbi and fvm; ready means the marker."""
    root = workspace.directory / "bundle"
    contents = {
        "target/x64/fuchsia.zbi": cpio.encode([cpio.directory("data")]),
        "target/x64/fvm.blk": b"the disk" * 1000,
        "target/x64/multiboot.bin": b"the kernel",
    }
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    for name, fake in {
        "build/out/default.zircon/tools/fvm": "fvm",
        "build/out/default.zircon/tools/zbi": "zbi",
        "qemu-for-fuchsia/bin/qemu-system-x86_64": "qemu",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FAKES / fake, root / name)
    workspace.environment["FUCHSIA_RESOURCES_DIR"] = str(root)
    workspace.configure(
        "[boot]\nready = marker\ntimeout = 60\n[qemu]\naccel = tcg\n"
        "[tools]\ntimeout = 60\nproof = off\nzbi = build\nfvm = build\n"
    )
    return workspace


@pytest.fixture(scope="session")
def demo_parts(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A store in which the Linux guest's parts, images and template have been made once, for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "demo"
    with locked(shared):
        if not (shared / "done").exists():
            shutil.rmtree(shared, ignore_errors=True)
            shared.mkdir()
            environment = {**os.environ, "TOPCOAT_ROOT": str(shared / "out")}
            command = [str(BIN / "luigi"), "--module", "tasks"]
            for task in ("InitrdWithKey", "ExtendedBlk", "DemoKernel", "BootTemplate"):
                subprocess.run([*command, task], cwd=shared, env=environment, check=True, timeout=300)
            # What nobody writes to, 400 MB in all: those who copy the store copy the links
            for place in ("demo/tools", "templates/demo/ram", "images/demo/targets", *_compiled(shared / "out")):
                kept = shared / "kept" / place
                kept.parent.mkdir(parents=True, exist_ok=True)
                (shared / "out" / place).rename(kept)
                (shared / "out" / place).symlink_to(kept)
            shutil.rmtree(shared / "out/demo/apt", ignore_errors=True)  # lists, which nobody needs any more
            shutil.rmtree(shared / "out/instances")  # of the template's maker
            (shared / "done").touch()
    return shared / "out"


def _compiled(store: Path) -> list[str]:
    """The directories with compiled targets, relative to the store."""
    return [str(path.relative_to(store)) for path in store.glob("targets/*/compiled/*") if path.is_dir()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the real guest, and what runs whole programs: see the markers in pyproject.toml.

    The first tests that need the guest wait until it is made, which takes minutes on a busy host.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "demo_parts" in fixtures:
            item.add_marker("real")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(400))
        if "workspace" in fixtures:
            item.add_marker("slow")


@pytest.fixture
def demo(workspace: Workspace, demo_parts: Path) -> Workspace:
    """A workspace with the real QEMU and the real Linux guest, whose images are prepared: its instances are clones."""
    prepare_demo(workspace, demo_parts)
    return workspace


def prepare_demo(workspace: Workspace, demo_parts: Path) -> None:
    """Give a workspace the prepared images."""
    # shutil would fill the holes of the 3 GiB disk
    subprocess.run(["cp", "-a", "--sparse=always", demo_parts, workspace.store.root], check=True)


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory, demo_parts: Path) -> Iterator[Workspace]:
    """A workspace with the real Linux guest i0, which runs. The tests of a module share it, and leave it as it was."""
    directory = tmp_path_factory.mktemp("booted")
    with new_workspace(directory / "work") as made:
        prepare_demo(made, demo_parts)
        done = made.luigi("BootInstance")
        assert done.status == 0, done.text
        yield made
    shutil.rmtree(directory)
