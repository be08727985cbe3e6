import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ToolFailed, ToolLied, ToolMissing, ToolTimeout
from pipeline.host.process import Process
from pipeline.host.tools import Tool, require_output, run
from tests.waiting import SOON

LONG = 30.0


def shell(script: str) -> Tool:
    return Tool("helper", ("/bin/sh", "-c", script, "sh"), (Path("/bin/sh"),))


def program(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def gone(pid: int) -> bool:
    """Whether the process has ended, or does so at once."""
    process = Process.find(pid)
    return process is None or process.wait(SOON)


def test_run_gives_stdout_and_not_stderr() -> None:
    assert run(shell("echo out; echo err >&2; echo more"), timeout=LONG) == "out\nmore\n"


def test_run_gives_arguments_as_they_are() -> None:
    words = ["two words", "", "$HOME", "*", "-x", "quote'\"", "line\nbreak", "ümläut"]
    said = run(shell("for word; do printf '%s|' \"$word\"; done"), *words, Path("/a path"), timeout=LONG)
    assert said.split("|") == [*words, "/a path", ""]


def test_run_starts_in_the_given_directory(tmp_path: Path) -> None:
    assert run(shell("pwd -P"), timeout=LONG, cwd=tmp_path) == f"{tmp_path.resolve()}\n"


def test_stdin_is_empty_and_nothing_is_a_terminal() -> None:
    said = run(shell("cat; for fd in 0 1 2; do test -t $fd && echo terminal; done; echo end"), timeout=LONG)
    assert said == "end\n"


def test_the_tool_has_a_session_of_its_own() -> None:
    pid, session = run(shell("echo $$; cut -d' ' -f6 /proc/$$/stat"), timeout=LONG).split()
    assert pid == session != str(os.getsid(0))


def test_output_that_is_not_utf8_does_no_harm() -> None:
    assert run(shell(r"printf 'a\377\376b'"), timeout=LONG) == "a\ufffd\ufffdb"


@pytest.mark.parametrize(
    ("text", "how"),
    [("exit 3", "with exit code 3"), ("kill -SEGV $$", "by signal 11"), ("kill -KILL $$", "by signal 9")],
    ids=["exit code", "SIGSEGV", "SIGKILL"],
)
def test_a_failure_says_how(text: str, how: str) -> None:
    with pytest.raises(ToolFailed, match=f"^helper failed {how}$"):
        run(shell(text), timeout=LONG)


def test_a_failure_shows_the_command_and_the_end_of_stderr() -> None:
    with pytest.raises(ToolFailed) as caught:
        run(shell(r"echo out; printf '\033[31mbad\033[0m\n\n' >&2; exit 1"), "an argument", timeout=LONG)
    lines = caught.value.detail.splitlines()
    assert lines[0].endswith("sh 'an argument'")
    assert lines[-1] == "bad"


def test_a_failure_without_stderr_shows_stdout() -> None:
    with pytest.raises(ToolFailed) as caught:
        run(shell("echo only this; exit 1"), timeout=LONG)
    assert caught.value.detail.splitlines()[-1] == "only this"


@pytest.mark.parametrize("kind", ["missing", "not executable", "directory"])
def test_what_cannot_be_run_is_missing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "fvm"
    if kind == "not executable":
        program(path, "#!/bin/sh\n", 0o644)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(ToolMissing, match=f"^fvm cannot be run: {path}$") as caught:
        run(Tool.at("fvm", path), timeout=LONG)
    assert "[build] fvm = PATH" in caught.value.hint


@pytest.mark.parametrize("text", ["#!/no/such/interpreter\n", "no program at all\n"], ids=["interpreter", "text"])
def test_what_the_kernel_does_not_run_is_missing(tmp_path: Path, text: str) -> None:
    with pytest.raises(ToolMissing):
        run(Tool.at("fvm", program(tmp_path / "fvm", text)), timeout=LONG)


def test_a_timeout_kills_grandchildren_too(tmp_path: Path) -> None:
    with pytest.raises(ToolTimeout, match=r"^helper did not end within 0\.5 s and was killed$") as caught:
        run(shell('sleep 1000 & echo $! >"$1"; wait'), tmp_path / "pid", timeout=0.5)
    assert "[tools] timeout" in caught.value.hint
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_timeout_shows_what_the_tool_said_last() -> None:
    with pytest.raises(ToolTimeout) as caught:
        run(shell("echo waiting for the lock >&2; exec sleep 1000"), timeout=0.3)
    assert caught.value.detail.endswith("\nwaiting for the lock")


def test_a_child_left_in_the_background_is_killed(tmp_path: Path) -> None:
    pid = run(shell("sleep 1000 >/dev/null 2>&1 & echo $!"), timeout=LONG)
    assert gone(int(pid))


def test_an_interrupt_kills_the_tool_and_its_children(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # The first, short sleep lets the caller come to its wait for the tool
    script = 'sleep 0.3; sleep 1000 & echo $! >"$1"; wait'
    code = "import sys; from pipeline.host.tools import *\n"
    code += f"TOOL = Tool('x', ('/bin/sh', '-c', {script!r}, 'sh'), (Path('/bin/sh'),))\n"
    code += "run(TOOL, sys.argv[1], timeout=60)"
    with subprocess.Popen([sys.executable, "-c", code, str(pipe)], stderr=subprocess.PIPE) as caller:
        grandchild = int(pipe.read_text())
        caller.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in caller.communicate()[1]
    assert gone(grandchild)


def test_a_tool_does_not_outlive_a_caller_that_is_killed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = "import sys; from pipeline.host.tools import *\n"
    code += "TOOL = Tool('x', ('/bin/sh', '-c', 'echo $$ >\"$1\"; exec sleep 1000', 'sh'), (Path('/bin/sh'),))\n"
    code += "run(TOOL, sys.argv[1], timeout=60)"
    with subprocess.Popen([sys.executable, "-c", code, str(pipe)]) as caller:
        tool = int(pipe.read_text())
        caller.kill()
    assert gone(tool)


def test_endless_output_stays_bounded() -> None:
    with pytest.raises(ToolTimeout) as caught:
        run(shell("yes"), timeout=0.3)
    assert len(caught.value.detail.splitlines()) <= 25


@pytest.mark.parametrize("filler", ["yes", "tr '\\0' x </dev/zero"], ids=["lines", "one line"])
def test_of_much_output_the_end_is_kept(filler: str) -> None:
    said = run(shell(f"{filler} | head -c 5000000; echo END"), timeout=LONG)
    assert said.endswith("END\n")
    assert 500_000 < len(said) <= 1 << 20


def test_in_path_finds_a_program_or_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=r"^there is no program named cp in PATH$") as caught:
        Tool.in_path("cp", hint="install coreutils")
    assert caught.value.hint == "install coreutils"
    program(tmp_path / "cp", "#!/bin/sh\n")
    assert Tool.in_path("cp", hint="") == Tool.at("cp", tmp_path / "cp")


def test_a_module_runs_by_this_python() -> None:
    assert run(Tool.module("this", "this"), timeout=LONG).startswith("The Zen of Python")


def test_required_output_is_there(tmp_path: Path) -> None:
    require_output(shell("true"), program(tmp_path / "out", "x"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "helper ended well but left no out"),
        ("empty", "helper ended well but left no out (it is empty)"),
        ("directory", "helper ended well but left no out"),
    ],
)
def test_a_tool_that_leaves_nothing_has_lied(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "out"
    if kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(ToolLied) as caught:
        require_output(shell("true"), path)
    assert str(caught.value).startswith(message)
    assert "/bin/sh -c true sh" in caught.value.hint
