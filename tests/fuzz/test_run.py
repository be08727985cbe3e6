"""Whole runs, by the tags of the Go tests. F13 is of ffx; -jobs passes through here."""

from pathlib import Path

import pytest

from pipeline.errors import BadArguments, CommandError, FuzzerError, FuzzerTimeout, OutputLost, SymbolizerFailed
from tests.fuzz.fakes import Guest, Output

TMP = {"v1": "/tmp/r/sys/fuchsia.com:foo:0#meta:bar.cmx", "fuzz_ctl": "/tmp/fuzz_ctl/fuchsia.com/foo/bar"}


def in_tmp(guest: Guest, name: str) -> str:
    return f"{TMP.get(guest.style, guest.directory / 'tmp')}/{name}"


def script(text: str) -> str:
    return f"#!/bin/sh\n{text}\n"


def program(path: Path, text: str) -> str:
    path.write_text(script(text))
    path.chmod(0o755)
    return str(path)


def test_f15_run_gives_syslog_symbols_and_artifacts(guest: Guest) -> None:
    found, said = guest.run("data/corpus")
    assert found == [in_tmp(guest, "crash-1312")]
    lines = said.split("\n")
    at = lines.index("MS: 1 ChangeByte-; base unit: adc83b19e793491b1c6ea0fd8b46cd9f32e592fc")
    assert lines[at - 1 : at + 3] == ["wow.c:1", lines[at], "syslog of 414141: wow.c:1", "Deadly signal"]
    assert guest.connector.calls.count(("syslog", "414141")) == 1


def test_f15_all_filler_comes_out(guest: Guest) -> None:
    assert guest.run()[1].count("filler\n") == 65536 // 7


def test_f16_artifacts_have_the_path_on_the_host(guest: Guest) -> None:
    found, said = guest.run("data/corpus", artifacts=Path("/some/artifactDir"))
    assert "artifact_prefix='/some/artifactDir/'; Test unit written to /some/artifactDir/crash-1312\n" in said
    assert found == [in_tmp(guest, "crash-1312")]


def test_f16_names_of_files_are_those_of_the_caller(guest: Guest) -> None:
    _, said = guest.run("-merge_control_file=data/.mergefile", "data/corpus")
    assert "arguments: -merge_control_file=tmp/.mergefile -artifact_prefix=tmp/ tmp/corpus\n" in said
    assert "\nRunning: data/corpus/testcase\n" in said
    assert "3 files found in data/corpus\n" in said


def test_f17_artifact_prefix_must_be_mutable(guest: Guest) -> None:
    with pytest.raises(BadArguments, match=r'^artifact_prefix not in mutable namespace: "foo/bar"$'):
        guest.run("-artifact_prefix=foo/bar", "data/corpus")
    assert guest.connector.calls == []


def test_f13_jobs_pass_through(guest: Guest) -> None:
    assert "arguments: -jobs=1 -artifact_prefix=tmp/ tmp/corpus\n" in guest.run("-jobs=1", "data/corpus")[1]


def test_f18_a_fuzzer_that_is_broken_is_an_error_with_what_it_said(guest: Guest) -> None:
    guest.mode("broken")
    output = Output()
    with pytest.raises(FuzzerError, match=r"^failed during wait: unexpected return code: 5") as caught:
        guest.run("data/corpus", output=output)
    # Merged into the output, or in the error
    assert ("internal error" in str(caught.value)) == (guest.style == "fuzz_ctl")
    assert ("internal error" in output.text) == (guest.style != "fuzz_ctl")


@pytest.mark.parametrize("status", [0, 1, 70, 71, 77])
def test_what_a_fuzzer_finds_is_no_error(guest: Guest, status: int) -> None:
    guest.mode("", status)
    if guest.style == "fuzz_ctl" and status:
        with pytest.raises(FuzzerError, match=f"return code: {status}"):
            guest.run()
    else:
        assert len(guest.run()[0]) == 1


@pytest.mark.parametrize(("status", "fine"), [(2, ()), (3, ()), (72, ("linux",)), (126, ()), (255, ())])
def test_other_return_codes(guest: Guest, status: int, fine: tuple[str, ...]) -> None:
    guest.mode("", status)
    if guest.style in fine:
        guest.run()
    else:
        with pytest.raises(FuzzerError, match=f"^failed during wait: unexpected return code: {status}$"):
            guest.run()


def test_return_codes_that_are_asked_for(guest: Guest) -> None:
    guest.mode("", 88)
    words = ("-error_exitcode=88", "data/corpus")
    if guest.style == "linux":
        guest.run(*words)
    else:
        with pytest.raises(FuzzerError, match="unexpected return code: 88"):
            guest.run(*words)


def test_f20_without_a_pid_there_is_a_warning(guest: Guest) -> None:
    guest.mode("no_pid")
    found, said = guest.run()
    assert "MS: 1 ChangeByte-" in said.split("\nWARNING: failed to fetch syslog: missing pid\n")[0]
    assert len(found) == 1


def test_f21_a_syslog_that_fails_is_a_warning(guest: Guest) -> None:
    guest.connector.syslog_failure = CommandError("no \x1b[31mlog\nhere", hint="none")
    found, said = guest.run()
    assert "\nWARNING: failed to fetch syslog: no log\\nhere\nDeadly signal\n" in said
    assert len(found) == 1


def test_a_syslog_that_fails_unexpectedly_ends_the_run(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    guest.connector.syslog_failure = RuntimeError("a bug")
    stopped: list[object] = []
    monkeypatch.setattr(guest.fuzzer.style, "stop", stopped.append)
    with pytest.raises(FuzzerError, match=r"^failed during PID scanning: a bug$"):
        guest.run()
    assert stopped == [guest.connector]


def test_f22_a_broken_symbolizer_ends_the_run(guest: Guest, tmp_path: Path) -> None:
    guest.symbolize_by(program(tmp_path / "broken", "echo no symbols >&2; exit 3"))
    guest.mode("waits")
    with pytest.raises(SymbolizerFailed, match=r"^failed during symbolization: broken exited with 3$") as caught:
        guest.run()
    assert caught.value.detail == "no symbols"
    assert len(guest.connector.killed) == 1


def test_f22_a_missing_symbolizer_ends_the_run(guest: Guest) -> None:
    guest.symbolize_by("/invalid/path")
    guest.mode("waits")
    with pytest.raises(SymbolizerFailed, match=r"^failed during symbolization: /invalid/path: No such file"):
        guest.run()
    assert len(guest.connector.killed) == 1


def test_f23_code_127_says_not_found(guest: Guest) -> None:
    guest.install(script("exit 127"))
    with pytest.raises(FuzzerError, match=r"^failed during wait: .*127.*foo/bar or what runs it not found"):
        guest.run()


def test_f23_of_a_real_shell(linux: Guest) -> None:
    (linux.directory / "pkg/bar").unlink()
    output = Output()
    with pytest.raises(FuzzerError, match="not found"):
        linux.run("data/corpus", output=output)
    assert "pkg/bar" in output.text


def test_a_directory_that_is_not_there_is_no_finding(linux: Guest, tmp_path: Path) -> None:
    linux.directory.rename(tmp_path / "gone")
    with pytest.raises(FuzzerError, match="127"):
        linux.run()


def test_i9_the_tail_of_the_prefix_stays(guest: Guest) -> None:
    found, said = guest.run("-artifact_prefix=data/wow/x", "data/corpus", artifacts=Path("/host/dir"))
    assert "artifact_prefix='/host/dir/x'; Test unit written to /host/dir/xcrash-1312\n" in said
    assert found == [in_tmp(guest, "wow/xcrash-1312")]


def test_stderr_belongs_to_the_output_but_of_fuzz_ctl(guest: Guest) -> None:
    assert guest.run()[1].count("from stderr\n") == (guest.style != "fuzz_ctl")


def test_a_guest_that_dies_in_the_midst(guest: Guest) -> None:
    guest.mode("dies")
    output = Output()
    with pytest.raises(FuzzerError, match=r"^failed during wait: the command has no exit status$"):
        guest.run("data/corpus", output=output)
    assert "Running: data/corpus/testcase\n" in output.text


def test_a_connection_that_breaks_in_the_midst(guest: Guest) -> None:
    guest.connector.breaks = True
    output = Output()
    with pytest.raises(FuzzerError, match=r"^failed during PID scanning: the connection broke$") as caught:
        guest.run("data/corpus", output=output)
    assert caught.value.hint == "look at the guest"
    assert "Deadly signal\n" in output.text


class Closed(Output):
    """Somebody who goes away after the first bytes."""

    def write(self, data: bytes, /) -> None:
        if self.data:
            raise BrokenPipeError(32, "Broken pipe")
        super().write(data)


def test_an_output_that_is_closed_ends_the_fuzzer(guest: Guest) -> None:
    guest.install(script("while echo line; do :; done; sleep 1000"))
    with pytest.raises(OutputLost, match=r"^failed during symbolization: the output cannot be written.*Broken pipe"):
        guest.run("data/corpus", output=Closed())
    assert len(guest.connector.killed) == 1


@pytest.mark.slow
def test_a_limit_ends_the_fuzzer(guest: Guest) -> None:
    guest.mode("waits")
    output = Output()
    with pytest.raises(FuzzerTimeout, match=r"^failed during wait: the fuzzer did not end within 3 s"):
        guest.run("data/corpus", output=output, limit=3)
    assert "Running: data/corpus/testcase\n" in output.text
    assert len(guest.connector.killed) == 1


def test_a_limit_ends_a_fuzzer_that_never_is_quiet(guest: Guest) -> None:
    guest.install(script("yes"))
    with pytest.raises(FuzzerTimeout):
        guest.run("data/corpus", limit=0.3)


class Interrupted(Output):
    def write(self, data: bytes, /) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_ends_the_fuzzer(guest: Guest) -> None:
    guest.mode("waits")
    with pytest.raises(KeyboardInterrupt):
        guest.run("data/corpus", output=Interrupted())
    assert len(guest.connector.killed) == 1


def test_output_comes_while_the_fuzzer_runs(guest: Guest, tmp_path: Path) -> None:
    go = tmp_path / "go"
    guest.install(script(f"echo first; while [ ! -e {go} ]; do sleep 0.01; done; echo second"))

    class Signal(Output):
        def write(self, data: bytes, /) -> None:
            super().write(data)
            go.touch()

    assert guest.run("data/corpus", output=Signal())[1].startswith("first\nsecond\n")


def test_bytes_that_are_no_text_pass(guest: Guest) -> None:
    guest.install(script(r"printf 'a\377\200\0b\v\f\r\nTest unit written to tmp/crash-\377\n'"))
    found, said = guest.run()
    assert said.encode(errors="surrogateescape").startswith(b"a\xff\x80\0b\v\f\nTest unit written to tmp/crash-\xff\n")
    assert found == [in_tmp(guest, "crash-\udcff")]
