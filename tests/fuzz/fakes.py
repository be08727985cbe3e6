"""A guest that is this host: its commands are real processes, and all that is asked of it is logged."""

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from pipeline.errors import CommandError, CommandExited
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.fuzz.styles import V1, FuzzCtl, Linux, Style
from pipeline.fuzz.symbolizer import Symbolizer
from pipeline.fuzz.targets import FuzzTarget
from tests.waiting import SOON

FAKES = Path(__file__).parent.parent / "fakes"
SYMBOLIZER = Symbolizer((str(FAKES / "symbolizer"),), SOON)
STYLES = ("v1", "fuzz_ctl", "linux")
PID = 414141


class FakeStream:
    """A stream of a command, which need not have been started yet."""

    def __init__(self, command: "FakeCommand", name: str) -> None:
        self._command = command
        self._name = name

    @property
    def _file(self) -> IO[bytes]:
        file = getattr(self._command.process, self._name)
        assert file is not None
        return file  # type: ignore[no-any-return]

    def read1(self, size: int, /) -> bytes:
        if self._command.connector.breaks and self._name == "stdout" and self._file.peek(1) == b"":  # type: ignore[attr-defined]
            raise CommandError("the connection broke", hint="look at the guest")
        return self._file.read1(size)  # type: ignore[attr-defined, no-any-return]

    def close(self) -> None:
        self._command.kill()
        self._file.close()


class FakeCommand:
    """A command that is a process of the host."""

    def __init__(self, connector: "FakeConnector", words: tuple[str, ...], argv: list[str]) -> None:
        self.connector = connector
        self.words = words
        self.argv = argv
        self.taken: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if "stdout" in self.taken else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **self.connector.environment},
        )
        self.connector.started.append(self.process)

    def stdout(self) -> FakeStream:
        self.taken.append("stdout")
        return FakeStream(self, "stdout")

    def stderr(self) -> FakeStream:
        self.taken.append("stderr")
        return FakeStream(self, "stderr")

    def wait(self, limit: float | None = None) -> None:
        assert self.process is not None
        self.process.wait(limit)
        said = b""
        if self.process.stderr and "stderr" not in self.taken:
            said = self.process.stderr.read()
        status = self.process.returncode
        if status < 0:
            raise CommandError("the command has no exit status", hint="look at the guest")
        if status:
            raise CommandExited(
                f"{self.words} exited with error: {status}", hint="none", status=status, command="cmd", stderr=said
            )

    def kill(self) -> bool:
        assert self.process is not None
        if self.process.poll() is None:
            self.connector.killed.append(self.words)
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(SOON)
        return True

    def run(self, limit: float | None = None) -> None:
        self.start()
        self.wait(limit)

    def output(self, limit: float | None = None) -> bytes:
        self.taken.append("stdout")
        self.run(limit)
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.read()


class FakeConnector:
    """Logs every call. Programs of the guest that prepare are `true`, unless `answers` has a status for them."""

    def __init__(self, program: str | Path = FAKES / "fuzzer", **environment: str) -> None:
        self.program = str(program)
        self.environment = environment
        self.calls: list[tuple[str, ...]] = []
        self.killed: list[tuple[str, ...]] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self.answers: dict[str, int] = {}
        self.breaks = False
        """Whether the stream of output breaks where it should end."""
        self.syslog_failure: Exception | None = None
        self.tools: Path | None = None
        """Where programs of the guest are, if not where the host's are."""

    def command(self, *words: str, shell: bool = False) -> FakeCommand:
        self.calls.append(("shell", *words) if shell else words)
        return FakeCommand(self, words, self._argv(words, shell))

    def _argv(self, words: tuple[str, ...], shell: bool) -> list[str]:
        if shell:
            assert len(words) == 1
            # What a real guest would do to directories of the host is left out
            return ["/bin/sh", "-c", "true" if words[0].startswith("rm -rf '/tmp/r") else words[0]]
        if words[0] == "run":
            return [self.program, *words[2:]]
        if words[:2] == ("fuzz_ctl", "run_libfuzzer"):
            return [self.program, *words[3:]]
        if words[0] == "stat":
            return [str(self.tools / "stat") if self.tools else "stat", *words[1:]]
        return ["/bin/sh", "-c", f"exit {self.answers.get(words[0], 0)}"]

    def syslog(self, pid: int) -> bytes:
        self.calls.append(("syslog", str(pid)))
        if self.syslog_failure:
            raise self.syslog_failure
        if pid != PID:
            raise CommandError(f"no log of {pid}", hint="none")
        return b"[1.2][klog] INFO: syslog of 414141: {{{0x41}}}\r\n"

    def put(self, source: str, target: str) -> None:
        self.calls.append(("put", source, target))

    def get(self, source: str, target: Path) -> None:
        self.calls.append(("get", source, str(target)))

    def rmdir(self, path: str) -> None:
        self.calls.append(("rmdir", path))

    def close(self) -> None:
        """Make sure that nothing runs any more."""
        for process in self.started:
            assert process.poll() is not None, f"{process.args!r} still runs"
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()


class Output:
    """Takes what a fuzzer writes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes, /) -> None:
        self.data += data

    def flush(self) -> None:
        pass

    @property
    def text(self) -> str:
        return self.data.decode()


def style_named(name: str, root: Path) -> Style:
    target = FuzzTarget("foo", "bar", "v1" if name == "v1" else "v2")
    styles: dict[str, Style] = {"v1": V1(target), "fuzz_ctl": FuzzCtl(target), "linux": Linux(target, str(root))}
    return styles[name]


class Guest:
    """A fuzzer of one style, and the connector to where it is."""

    def __init__(self, style: str, root: Path) -> None:
        self.style = style
        self.directory = root / "foo" / "bar"
        self.fuzzer = Fuzzer(FuzzTarget("foo", "bar"), style_named(style, root), SYMBOLIZER)
        self.connector = FakeConnector(FAKES / "fuzzer", FAKE_STYLE=style)
        self.install((FAKES / "fuzzer").read_text())

    def install(self, script: str, *, as_it_is: bool = False) -> None:
        """Make this the fuzzer. In the linux style its stdout goes to stderr, where libFuzzer speaks."""
        if self.style == "linux" and not as_it_is:
            script = script.replace("#!/bin/sh\n", "#!/bin/sh\nexec >&2\n", 1)
        program = self.directory / "pkg" / "bar"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(script)
        program.chmod(0o755)
        self.connector.program = str(program)

    def mode(self, mode: str, status: int = 0) -> None:
        self.connector.environment |= {"FAKE_MODE": mode, "FAKE_STATUS": str(status)}

    def symbolize_by(self, *argv: str, patience: float = 20) -> None:
        """Take another symbolizer."""
        self.fuzzer = replace(self.fuzzer, symbolizer=Symbolizer(argv, patience))

    def run(
        self, *words: str, output: Output | None = None, artifacts: Path | None = None, limit: float | None = 20
    ) -> tuple[list[str], str]:
        """Run it; with a corpus if no words are given."""
        taken = output or Output()
        found = self.fuzzer.run(self.connector, words or ("data/corpus",), taken, artifacts, limit)
        return found, taken.data.decode(errors="surrogateescape")
