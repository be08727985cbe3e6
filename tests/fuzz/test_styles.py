"""How fuzzers are run in each kind of guest, by the tags of the Go tests."""

import os
import shlex
import shutil
import signal
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.builds.build import Build, Resource
from pipeline.builds.targets.listing import ListedTarget
from pipeline.builds.targets.places import TargetsPlaces
from pipeline.errors import CommandExited, FuzzerError, NotSupported, SettingsError
from pipeline.fuzz.arguments import Arguments
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.fuzz.styles import V1, FuzzCtl, Linux, style_of
from pipeline.fuzz.symbolizer import Symbolizer
from pipeline.fuzz.targets import FuzzTarget, Generation
from pipeline.settings import Store
from tests.fuzz.fakes import FakeConnector, Guest
from tests.fuzz.test_targets import build, label, v2
from tests.waiting import SOON, eventually

URL = "fuchsia-pkg://fuchsia.com/cff#meta/fuzzer.cm"
TARGET = FuzzTarget("cff", "fuzzer")


def on_linux(build: Build) -> Build:
    """The build, as one of the Linux guest."""
    return replace(build, targets=TargetsPlaces("p", Path("/p"), Store(Path("/s")), build="demo"))


def test_f2_the_style_follows_build_and_generation(tmp_path: Path) -> None:
    assert isinstance(style_of(build(tmp_path), TARGET, {}), FuzzCtl)
    assert isinstance(style_of(build(tmp_path), FuzzTarget("a", "b", "v1"), {}), V1)
    assert isinstance(style_of(on_linux(build(tmp_path, kind="demo")), TARGET, {}), Linux)


@pytest.mark.parametrize("word", ["1", "t", "T", "true", "True", "TRUE"])
def test_f2_ffx_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(NotSupported, match="cannot be run by `ffx fuzz` yet") as caught:
        style_of(build(tmp_path), TARGET, {"UNDERCOAT_USE_FFX_FUZZ": word})
    assert "unset UNDERCOAT_USE_FFX_FUZZ" in caught.value.hint


@pytest.mark.parametrize("word", ["0", "f", "F", "false", "False", "FALSE"])
def test_f2_a_switch_that_is_off(tmp_path: Path, word: str) -> None:
    assert style_of(build(tmp_path), TARGET, {"UNDERCOAT_USE_FFX_FUZZ": word}).name == "fuzz_ctl"


@pytest.mark.parametrize("word", ["", "yes", "tRUE", " 1", "01", "no"])
def test_f2_another_word_is_an_error(tmp_path: Path, word: str) -> None:
    with pytest.raises(SettingsError, match="neither true nor false"):
        style_of(build(tmp_path), TARGET, {"UNDERCOAT_USE_FFX_FUZZ": word})


@pytest.mark.parametrize(
    ("path", "absolute"),
    [
        ("/x/y", "/x/y"),
        ("data/x", "/tmp/r/sys/fuchsia.com:cff:0#meta:fuzzer.cmx/x"),
        ("tmp/x", "/tmp/r/sys/fuchsia.com:cff:0#meta:fuzzer.cmx/x"),
        ("data/a/*", "/tmp/r/sys/fuchsia.com:cff:0#meta:fuzzer.cmx/a/*"),
        ("pkg/data/x", "/pkgfs/packages/cff/0/data/x"),
        ("x/data/y", "/x/data/y"),
        ("data", "/data"),
    ],
)
def test_f3_absolute_paths_of_v1(path: str, absolute: str) -> None:
    assert V1(FuzzTarget("cff", "fuzzer", "v1")).absolute(path) == absolute


@pytest.mark.parametrize(
    ("path", "absolute"),
    [
        ("/x/y", "/x/y"),
        ("data/x", "/tmp/fuzz_ctl/fuchsia.com/cff/fuzzer/x"),
        ("tmp/x", "/tmp/fuzz_ctl/fuchsia.com/cff/fuzzer/x"),
        ("data/tmp/x", "/tmp/fuzz_ctl/fuchsia.com/cff/fuzzer/tmp/x"),
        ("pkg/x", "/tmp/fuzz_ctl/fuchsia.com/cff/fuzzer/pkg/x"),
        ("x", "/tmp/fuzz_ctl/fuchsia.com/cff/fuzzer/x"),
    ],
)
def test_f4_absolute_paths_of_fuzz_ctl(path: str, absolute: str) -> None:
    assert FuzzCtl(TARGET).absolute(path) == absolute


@pytest.mark.parametrize(
    ("path", "absolute"),
    [
        ("/x/y", "/x/y"),
        ("data/x", "/data/fuzz/cff/fuzzer/tmp/x"),
        ("tmp/x", "/data/fuzz/cff/fuzzer/tmp/x"),
        ("data/", "/data/fuzz/cff/fuzzer/tmp/"),
        ("data", "/data/fuzz/cff/fuzzer/tmp"),
        ("pkg/x", "/data/fuzz/cff/fuzzer/pkg/x"),
        ("x", "/data/fuzz/cff/fuzzer/x"),
    ],
)
def test_absolute_paths_of_linux(path: str, absolute: str) -> None:
    assert Linux(TARGET).absolute(path) == absolute


def test_f9_prepare_of_fuzz_ctl_is_one_reset(connector: FakeConnector) -> None:
    FuzzCtl(TARGET).prepare(connector)
    assert connector.calls == [("fuzz_ctl", "reset", URL)]


def test_prepare_of_v1_loads_kills_and_empties(connector: FakeConnector) -> None:
    V1(FuzzTarget("cff", "fuzzer", "v1")).prepare(connector)
    assert connector.calls == [
        ("pkgctl", "resolve", "fuchsia-pkg://fuchsia.com/cff"),
        ("killall", "fuchsia-pkg://fuchsia.com/cff"),
        ("shell", "rm -rf '/tmp/r/sys/fuchsia.com:cff:0#meta:fuzzer.cmx'/*"),
    ]


def test_prepare_of_v1_may_find_nothing_to_kill(connector: FakeConnector) -> None:
    connector.answers["killall"] = 255
    V1(FuzzTarget("cff", "fuzzer", "v1")).prepare(connector)
    assert len(connector.calls) == 3


@pytest.mark.parametrize(("name", "status"), [("killall", 1), ("pkgctl", 255)])
def test_prepare_of_v1_fails_with_its_commands(connector: FakeConnector, name: str, status: int) -> None:
    connector.answers[name] = status
    with pytest.raises(CommandExited) as caught:
        V1(FuzzTarget("cff", "fuzzer", "v1")).prepare(connector)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("style", "words"),
    [
        (V1(FuzzTarget("cff", "fuzzer", "v1")), ("run", f"{URL}x", "-b=1", "a b", "c")),
        (FuzzCtl(TARGET), ("fuzz_ctl", "run_libfuzzer", URL, "-b=1", "a b", "c")),
    ],
    ids=["v1", "fuzz_ctl"],
)
def test_commands(connector: FakeConnector, style: V1 | FuzzCtl, words: tuple[str, ...]) -> None:
    style.command(connector, Arguments({"b": "1"}, ("a b", "c")))
    assert connector.calls == [words]


def test_a_command_of_linux_quotes_for_the_shell(connector: FakeConnector) -> None:
    Linux(TARGET, variables={"MODE": "a b"}).command(connector, Arguments({"b": "$(x)"}, ("a b",)))
    ((kind, line),) = connector.calls
    assert kind == "shell"
    assert line.startswith("cd /data/fuzz/cff/fuzzer 2>&1 || exit 127; exec env ASAN_OPTIONS=")
    home = "/data/fuzz/cff/fuzzer"
    assert f" TMPDIR=tmp PATH={home}/pkg:/bin LD_LIBRARY_PATH={home}/pkg:{home}/pkg/lib:" in line
    assert ":/targets/files/cff:/targets/files/cff/lib 'MODE=a b' " in line
    assert line.endswith(f" {home}/pkg/fuzzer '-b=$(x)' 'a b' 2>&1 >/dev/null")


def test_a_target_of_linux_has_its_own_environment_which_the_campaign_s_overrides(connector: FakeConnector) -> None:
    own = {"MODE": "own", "ASAN_OPTIONS": "redzone=64:exitcode=5", "LEVEL": "2"}
    listed = ListedTarget("cff", "fuzzer", "b3:1", "/targets/files/cff/fuzzer", environment=own)
    chosen = {"MODE": "chosen", "ASAN_OPTIONS": "exitcode=6"}
    Linux(replace(TARGET, listed=listed), variables=chosen).command(connector, Arguments({}))
    ((_, line),) = connector.calls
    words = shlex.split(line)
    assert {"MODE=chosen", "LEVEL=2", "G_SLICE=always-malloc"} <= {*words}
    (asan,) = (word for word in words if word.startswith("ASAN_OPTIONS="))
    options = dict(option.split("=") for option in asan.removeprefix("ASAN_OPTIONS=").split(":"))
    assert (options["redzone"], options["exitcode"], options["halt_on_error"]) == ("64", "6", "1")


@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_a_guest_that_takes_no_variables_refuses_them(tmp_path: Path, generation: Generation) -> None:
    with pytest.raises(NotSupported, match="a/b cannot be given MODE: on Fuchsia its manifest has its environment"):
        style_of(build(tmp_path), FuzzTarget("a", "b", generation), {}, {"MODE": "x"})


def test_linux_really_runs_where_tmp_is(linux: Guest) -> None:
    said_to_nobody = "echo what the target itself prints"
    told = 'pwd -P; echo "${ASAN_OPTIONS##*:}" $TMPDIR; for word; do echo "[$word]"; done'
    linux.install(f"#!/bin/sh\n{said_to_nobody}\nexec >&2; {told}; echo x >tmp/new", as_it_is=True)
    linux.fuzzer.prepare(linux.connector)
    _, said = linux.run("-dict=pkg/it's", "data/*", "two words")
    assert said.split("\n")[:6] == [
        str(linux.directory),
        "use_sigaltstack=1 tmp",
        "[-dict=pkg/it's]",
        "[-artifact_prefix=tmp/]",
        "[tmp/*]",
        "[two words]",
    ]
    assert (linux.directory / "tmp/new").read_text() == "x\n"


def test_linux_really_prepares(linux: Guest) -> None:
    for name in ("data/a", "tmp/corpus/.b", "pkg/c"):
        (linux.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (linux.directory / name).touch()
    linux.fuzzer.prepare(linux.connector)
    assert sorted(path.name for path in linux.directory.iterdir()) == ["data", "pkg", "tmp"]
    assert list((linux.directory / "data").iterdir()) == list((linux.directory / "tmp").iterdir()) == []
    assert (linux.directory / "pkg/c").exists()


def test_linux_really_kills_what_runs_of_the_fuzzer_and_nothing_else(linux: Guest, tmp_path: Path) -> None:
    linux.fuzzer.prepare(linux.connector)
    stubborn = "trap '' TERM HUP INT; sleep 1000 & wait; exit 0"
    mine = subprocess.Popen(["/bin/sh", "-c", stubborn], cwd=linux.directory)
    other = subprocess.Popen(["sleep", "100"], cwd=tmp_path)
    try:
        linux.fuzzer.prepare(linux.connector)
        assert mine.wait(SOON) == -9
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait(SOON)


def test_linux_really_kills_what_runs_its_program_elsewhere(linux: Guest, tmp_path: Path) -> None:
    linux.fuzzer.prepare(linux.connector)
    program = linux.directory / "pkg/bar"
    shutil.copy(str(shutil.which("sleep")), program)
    gone = subprocess.Popen([program, "1000"], cwd="/")
    try:
        linux.fuzzer.prepare(linux.connector)
        assert gone.wait(SOON) == -9
    finally:
        gone.kill()
        gone.wait(SOON)


@pytest.mark.parametrize("status", [0, 77, 3])
def test_what_a_run_of_linux_leaves_behind_ends_with_it(linux: Guest, tmp_path: Path, status: int) -> None:
    pid = tmp_path / "pid"
    left = f"setsid sh -c 'echo $$ >{pid}; exec sleep 1000' </dev/null >/dev/null 2>&1 &"
    linux.install(f"#!/bin/sh\n{left}\nwhile [ ! -s {pid} ]; do sleep 0.01; done; exit {status}\n", as_it_is=True)
    linux.fuzzer.prepare(linux.connector)
    with nullcontext() if status != 3 else pytest.raises(FuzzerError, match="unexpected return code: 3"):
        linux.run("data/corpus")
    where = Path(f"/proc/{pid.read_text().strip()}/cwd")
    try:
        eventually(lambda: not where.exists())
    finally:
        if where.exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("style", [V1(TARGET), FuzzCtl(TARGET)], ids=["v1", "fuzz_ctl"])
def test_on_fuchsia_a_run_leaves_nothing_behind(style: V1 | FuzzCtl, connector: FakeConnector) -> None:
    assert not style.leaves
    assert style.shortage(connector) == ""
    assert connector.calls == []


@pytest.mark.parametrize(
    ("said", "shortage"),
    [
        ("60000 61000 4096 61000 61000", ""),
        ("4096 61000 4096 61000 61000", ""),
        ("4095 1000000 4096 61000 61000", "16 MiB are left on its disk of 3.8 GiB"),
        ("0 61000 4096 61000 61000", "0 B are left on its disk of 238 MiB"),
        ("500 6000 4096 61000 61000", ""),
        ("299 6000 4096 61000 61000", "1 MiB are left on its disk of 23 MiB"),
        ("60000 61000 4096 999 61000", "it can make 999 more files"),
        ("0 0 4096 0 0", ""),
        ("what you want", ""),
        ("-1 -1 -1 -1 -1", ""),
        ("9" * 5000, ""),
    ],
)
def test_the_room_on_the_disk_of_linux(linux: Guest, tmp_path: Path, said: str, shortage: str) -> None:
    """A file system without a size, as ramfs, says that it has none; whatever else a guest says means nothing."""
    (tmp_path / "stat").write_text(f"#!/bin/sh\necho '{said}'\n")
    (tmp_path / "stat").chmod(0o755)
    linux.connector.tools = tmp_path
    assert linux.fuzzer.style.shortage(linux.connector) == shortage


def test_the_room_on_the_disk_of_linux_is_really_asked_for(linux: Guest) -> None:
    """As the tests run, the host has enough of it."""
    linux.fuzzer.prepare(linux.connector)
    assert linux.fuzzer.style.shortage(linux.connector) == ""
    assert linux.connector.calls[-1][-1] == str(linux.directory)


def test_paths_of_files_are_translated(guest: Guest) -> None:
    guest.fuzzer.get(guest.connector, "data/corpus/*", Path("/host"))
    guest.fuzzer.put(guest.connector, "/host/*", "data/corpus")
    corpus = guest.fuzzer.absolute("data/corpus")
    assert guest.connector.calls == [("get", f"{corpus}/*", "/host"), ("put", "/host/*", corpus)]


def test_a_fuzzer_of_a_build(tmp_path: Path) -> None:
    listed = on_linux(build(tmp_path, [label("//a", package="p", fuzzer="f")], [v2("q", "g")], kind="demo"))
    tools = {key: Resource(key, Path(f"/bin/{key}"), "") for key in ("symbolizer", "llvm-symbolizer")}
    made = replace(listed, resources={**listed.resources, **tools})
    fuzzer = Fuzzer.of(made, "p/f", {})
    assert fuzzer.target == FuzzTarget("p", "f", "v1")
    assert (fuzzer.style.name, fuzzer.symbolizer) == ("linux", Symbolizer.of(made))


class TestLasting:
    """A process that a sanitizer would end sleeps instead."""

    def test_on_linux_only_the_environment_differs(self) -> None:
        style = Linux(TARGET, root="/r", variables={"MODE": "x"})
        connector = FakeConnector()
        for one in (style, style.lasting()):
            one.command(connector, Arguments({}))
        lines = [words[-1] for words in connector.calls]
        assert "sleep_before_dying" not in lines[0]
        assert "sleep_before_dying" in lines[1]
        assert "MODE=x" in lines[1]
        assert style.lasting().absolute("data/x") == style.absolute("data/x")

    @pytest.mark.parametrize("style", [V1(FuzzTarget("a", "b", "v1")), FuzzCtl(FuzzTarget("a", "b"))])
    def test_on_fuchsia_it_cannot_be_asked_for(self, style: V1 | FuzzCtl) -> None:
        with pytest.raises(NotSupported, match="a/b cannot be kept after a crash: on Fuchsia its manifest") as caught:
            style.lasting()
        assert "[campaign] capsule = off" in caught.value.hint
