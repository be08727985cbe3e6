"""The ways to run a fuzzer, one for each kind of guest."""

import os
import re
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from pipeline.builds.build import Build
from pipeline.builds.targets.places import IMAGE_FILES
from pipeline.errors import CommandExited, NotSupported, SettingsError
from pipeline.fuzz.arguments import MUTABLE, Arguments, mutable
from pipeline.fuzz.batch import Batch
from pipeline.fuzz.connector import GuestCommand, GuestConnector
from pipeline.fuzz.loop import Looped
from pipeline.fuzz.repetition import Repetition
from pipeline.fuzz.sanitizers import environment
from pipeline.fuzz.targets import FuzzTarget
from pipeline.text.quantity import readable_size

FFX_SWITCH = "UNDERCOAT_USE_FFX_FUZZ"
_TRUE = ("1", "t", "T", "true", "True", "TRUE")
_FALSE = ("0", "f", "F", "false", "False", "FALSE")

PREPARE_LIMIT = 300.0
"""Seconds that one command of a preparation may take: a package may have to be loaded."""

EMPTY_LIMIT = 60.0
"""Seconds that it may take to end all processes of a fuzzer and to delete its data: nothing is loaded for it."""

STOP_LIMIT = 30.0
"""Seconds that it may take to end all processes of a fuzzer."""

LEAST_BYTES = 16 << 20
"""The free bytes that a guest's disk must have for the next fuzzer; a twentieth of the disk, if that is less."""

LEAST_FILES = 1000
"""How many new files the disk must be able to take; a twentieth of all that it can have, if that is less."""

_LEAST_PART = 0.05
_SPACE = re.compile(rb"(\d{1,18}) (\d{1,18}) (\d{1,18}) (\d{1,18}) (\d{1,18})\s*")
_NOTHING_TO_KILL = 255  # killall's exit code

_ALWAYS = {"G_SLICE": "always-malloc", "NSS_DISABLE_UNLOAD": "1", "NSS_DISABLE_ARENA_FREE_LIST": "1"}
"""Variables by which GLib and NSS leave memory to the sanitizer, as ClusterFuzz sets them."""

_CRASHES = frozenset((1, 70, 71, 77))
"""libFuzzer's exit codes for a sanitizer's finding, timeout, out of memory, crash."""

_LIBFUZZER = _CRASHES | {0}
_MOST_CODES = 128
"""A shell tells by this exit code and those above it that a signal has ended a process."""


class Style(Protocol):
    """How a fuzzer is run in one kind of guest."""

    name: str
    merged: bool
    """Whether stderr is a stream of its own that has to be merged into the output."""
    leaves: bool
    """Whether processes that the fuzzer has started may run on after it has ended."""

    def absolute(self, path: str) -> str:
        """Return the path in the guest of what the fuzzer and its users call `path`, such as data/corpus."""

    def prepare(self, connector: GuestConnector) -> None:
        """End all processes of the fuzzer, and delete its data."""

    def command(self, connector: GuestConnector, arguments: Arguments) -> GuestCommand:
        """Make the command that runs the fuzzer. The arguments are those of Arguments.in_guest."""

    def repeated(self, connector: GuestConnector, arguments: Arguments, repetition: Repetition) -> GuestCommand | None:
        """Make the command that runs the fuzzer again and again, see pipeline.fuzz.repetition; None if none can."""

    def batched(self, connector: GuestConnector, arguments: Arguments, batch: Batch) -> GuestCommand | None:
        """Make the command that runs the fuzzer on each input, see pipeline.fuzz.batch; None if none can."""

    def lasting(self) -> "Style":
        """The same style, but a process that a sanitizer would end sleeps instead, until `stop` ends it.

        Not every sanitizer can do that. Raises NotSupported for a kind of guest where nobody can ask for it.
        """

    def stop(self, connector: GuestConnector) -> None:
        """End all processes of the fuzzer, after its command was killed, or has ended and left some behind."""

    def shortage(self, connector: GuestConnector) -> str:
        """Tell what the guest's disk has left, if that is too little for what a fuzzer finds; empty if it is enough."""

    def accepts(self, status: int, arguments: Arguments) -> bool:
        """Whether a fuzzer with these arguments may exit with this status after it has done its work."""


class V1:
    """A component of the first generation, run by its URL."""

    name = "v1"
    merged = True
    leaves = False  # its processes are in the component's job, which ends with it

    def __init__(self, target: FuzzTarget) -> None:
        self._target = target
        self._tmp = f"/tmp/r/sys/fuchsia.com:{target.package}:0#meta:{target.name}.cmx"

    def absolute(self, path: str) -> str:
        """See Style: data/ and tmp/ are the component's storage, pkg/ is its package, the rest is below the root."""
        if mutable(path).startswith(MUTABLE):
            return f"{self._tmp}/{mutable(path).removeprefix(MUTABLE)}"
        if path.startswith("pkg/"):
            return f"/pkgfs/packages/{self._target.package}/0/{path.removeprefix('pkg/')}"
        return path if path.startswith("/") else f"/{path}"

    def prepare(self, connector: GuestConnector) -> None:
        """Load the fuzzer's package, end its processes, and empty its storage."""
        connector.command("pkgctl", "resolve", self._target.package_url).run(PREPARE_LIMIT)
        self.stop(connector)
        connector.command(f"rm -rf {shlex.quote(self._tmp)}/*", shell=True).run(PREPARE_LIMIT)

    def command(self, connector: GuestConnector, arguments: Arguments) -> GuestCommand:
        """See Style."""
        return connector.command("run", self._target.url, *arguments.words)

    def repeated(self, _connector: GuestConnector, _arguments: Arguments, _repetition: Repetition) -> None:
        """See Style: Fuchsia has no shell that could."""

    def batched(self, _connector: GuestConnector, _arguments: Arguments, _batch: Batch) -> None:
        """See Style: Fuchsia has no shell that could."""

    def lasting(self) -> Style:
        """See Style: it cannot be asked for."""
        raise _cannot_last(self._target)

    def stop(self, connector: GuestConnector) -> None:
        """See Style."""
        try:
            connector.command("killall", self._target.package_url).run(STOP_LIMIT)
        except CommandExited as error:
            if error.status != _NOTHING_TO_KILL:
                raise

    def shortage(self, _connector: GuestConnector) -> str:
        """Return nothing: this guest is not asked about its disk."""
        return ""

    def accepts(self, status: int, _arguments: Arguments) -> bool:
        """Accept the exit codes of libFuzzer, whatever it found."""
        return status in _LIBFUZZER


class FuzzCtl:
    """A fuzzer of the second generation, run by the guest's `fuzz_ctl`."""

    name = "fuzz_ctl"
    merged = False
    leaves = False

    def __init__(self, target: FuzzTarget) -> None:
        self._target = target
        self._directory = f"/tmp/fuzz_ctl/fuchsia.com/{target.full_name}"

    def absolute(self, path: str) -> str:
        """See Style: all is in the directory that `fuzz_ctl` has for the fuzzer; data/ and tmp/ are that one itself."""
        if path.startswith("/"):
            return path
        return f"{self._directory}/{mutable(path).removeprefix(MUTABLE)}"

    def prepare(self, connector: GuestConnector) -> None:
        """See Style. `fuzz_ctl reset` does it."""
        connector.command("fuzz_ctl", "reset", self._target.url).run(PREPARE_LIMIT)

    def command(self, connector: GuestConnector, arguments: Arguments) -> GuestCommand:
        """See Style."""
        return connector.command("fuzz_ctl", "run_libfuzzer", self._target.url, *arguments.words)

    def repeated(self, _connector: GuestConnector, _arguments: Arguments, _repetition: Repetition) -> None:
        """See Style: Fuchsia has no shell that could."""

    def batched(self, _connector: GuestConnector, _arguments: Arguments, _batch: Batch) -> None:
        """See Style: Fuchsia has no shell that could."""

    def lasting(self) -> Style:
        """See Style: it cannot be asked for."""
        raise _cannot_last(self._target)

    def stop(self, _connector: GuestConnector) -> None:
        """Do nothing: a fuzzer that `fuzz_ctl` leaves behind is stopped by the next preparation."""

    def shortage(self, _connector: GuestConnector) -> str:
        """Return nothing: this guest is not asked about its disk."""
        return ""

    def accepts(self, status: int, _arguments: Arguments) -> bool:
        """Accept only 0, with which `fuzz_ctl` exits whatever was found."""
        return status == 0


class Linux:
    """A target of the Linux guest: pkg/NAME in its directory PACKAGE/NAME, where it runs and where tmp/ is its storage.

    `pkg` leads to the read-only directory that the target was found in, with all that lies beside it. As in OSS-Fuzz's
    own runner, PATH begins with that, and the target is called by its whole path, from which it can find its files.
    """

    name = "linux"
    merged = False  # its output is its error output
    leaves = True

    _INTERRUPTED = 72
    _CODES = ("timeout_exitcode", "error_exitcode")

    def __init__(
        self,
        target: FuzzTarget,
        root: str = "/data/fuzz",
        variables: Mapping[str, str] = MappingProxyType({}),
        *,
        lasting: bool = False,
    ) -> None:
        """Make the style; `variables` are set in the fuzzer's environment besides those that all fuzzers have.

        With `lasting`, it is what `Style.lasting` returns.
        """
        self._made_of = (target, root, variables)
        self._program = f"pkg/{target.name}"
        self._directory = f"{root}/{target.full_name}"
        places = [f"{self._directory}/pkg", str(IMAGE_FILES / target.package)]
        ours = {
            **_ALWAYS,
            "TMPDIR": "tmp",
            "PATH": f"{places[0]}:/bin",
            # Where a target's own libraries are, if it does not say by itself
            "LD_LIBRARY_PATH": ":".join(f"{place}{below}" for place in places for below in ("", "/lib")),
        }
        own = target.listed.environment if target.listed else {}
        self._environment = environment(ours, own, variables, lasting=lasting)

    def absolute(self, path: str) -> str:
        """See Style: all is in the fuzzer's directory, and data/ means tmp/, as in the other styles."""
        if path.startswith("/"):
            return path
        return f"{self._directory}/{'tmp' if path == 'data' else mutable(path)}"

    def prepare(self, connector: GuestConnector) -> None:
        """End all processes of the fuzzer, and make its data/ and tmp/ anew."""
        data, tmp = (shlex.quote(f"{self._directory}/{name}") for name in ("data", "tmp"))
        # All in one command: each one more takes the guest as long as hundreds of runs
        line = f"{self._killing}\nrm -rf {data} {tmp} && mkdir -p {data} {tmp}"
        connector.command(line, shell=True).run(EMPTY_LIMIT)

    def command(self, connector: GuestConnector, arguments: Arguments) -> GuestCommand:
        """Make a line for the shell, whose exit codes for what cannot be run are none that a fuzzer has.

        libFuzzer and the sanitizers write to stderr, which becomes the output; what the target itself writes to stdout
        is dropped.
        """
        program = f"{self._directory}/{self._program}"
        variables = (f"{name}={value}" for name, value in self._environment.items())
        words = shlex.join(["env", *variables, program, *arguments.words])
        line = f"cd {shlex.quote(self._directory)} 2>&1 || exit 127; exec {words} 2>&1 >/dev/null"
        return connector.command(line, shell=True)

    def repeated(self, connector: GuestConnector, arguments: Arguments, repetition: Repetition) -> GuestCommand:
        """See Style. The streams are those of `command`."""
        crashes = {*_CRASHES, *(int(code) for code in self._asked(arguments) if 0 < int(code) < _MOST_CODES)}
        return connector.command(repetition.script(self._looped(arguments), crashes), shell=True)

    def batched(self, connector: GuestConnector, arguments: Arguments, batch: Batch) -> GuestCommand:
        """See Style. The streams are those of `command`."""
        return connector.command(batch.script(self._looped(arguments)), shell=True)

    def _looped(self, arguments: Arguments) -> Looped:
        return Looped(self._directory, self._program, self._environment, arguments.words)

    def lasting(self) -> Style:
        """See Style."""
        return Linux(*self._made_of, lasting=True)

    def stop(self, connector: GuestConnector) -> None:
        """Kill all processes that run the fuzzer's program or work in its directory: an SSH server need not do that."""
        connector.command(self._killing, shell=True).run(STOP_LIMIT)

    @property
    def _killing(self) -> str:
        return _KILL.format(directory=shlex.quote(self._directory), program=shlex.quote(self._program))

    def shortage(self, connector: GuestConnector) -> str:
        """See Style. A guest whose answer cannot be understood counts as having enough."""
        said = connector.command("stat", "-f", "-c", "%a %b %S %d %c", self._directory).output(STOP_LIMIT)
        if not (facts := _SPACE.fullmatch(said)):
            return ""
        free, blocks, size, nodes, most_nodes = map(int, facts.groups())
        if free * size < min(LEAST_BYTES, blocks * size * _LEAST_PART):
            return f"{readable_size(free * size)} are left on its disk of {readable_size(blocks * size)}"
        return f"it can make {nodes} more files" if nodes < min(LEAST_FILES, most_nodes * _LEAST_PART) else ""

    def accepts(self, status: int, arguments: Arguments) -> bool:
        """Accept the exit codes of libFuzzer, also when it is interrupted, and those that its options set."""
        return status in _LIBFUZZER or status == self._INTERRUPTED or str(status) in self._asked(arguments)

    def _asked(self, arguments: Arguments) -> set[str]:
        """The exit codes for crashes that libFuzzer's options set."""
        codes = (arguments.options.get(name, "") for name in self._CODES)
        return {code for code in codes if re.fullmatch(r"\d{1,3}", code)}


# A fuzzer that starts others, as -jobs does, may start one more during the search; hence again until none is found
_KILL = """d={directory}; n=0
while found=; for p in /proc/[0-9]*; do
  if [ "$p/cwd" -ef "$d" ] || [ "$p/exe" -ef "$d/"{program} ]; then kill -9 "${{p##*/}}" && found=y; fi
done; [ "$found" ]; do
  n=$((n + 1)); if [ $n -gt 50 ]; then echo "it cannot be killed" >&2; exit 1; fi
  sleep 0.1
done"""


def _cannot_last(target: FuzzTarget) -> NotSupported:
    return NotSupported(
        f"{target.full_name} cannot be kept after a crash: on Fuchsia its manifest has its environment, and with that "
        "the options of its sanitizer",
        hint="do without: [campaign] capsule = off",
    )


def wants_ffx(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for `ffx fuzz`. Raises SettingsError for a word that is neither true nor false."""
    word = environ.get(FFX_SWITCH, "0")
    if word not in (*_TRUE, *_FALSE):
        raise SettingsError(
            f"{FFX_SWITCH}={word}: neither true nor false", hint=f"unset {FFX_SWITCH}, or set it to 0 or false"
        )
    return word in _TRUE


def style_of(
    build: Build,
    target: FuzzTarget,
    environ: Mapping[str, str] = os.environ,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Style:
    """Choose how the fuzzer is run; `variables` are set in its environment.

    Raises SettingsError, and NotSupported if `ffx fuzz` is asked for, or variables for a guest that takes none.
    """
    if wants_ffx(environ):
        raise NotSupported(
            f"{FFX_SWITCH}={environ[FFX_SWITCH]}: fuzzers cannot be run by `ffx fuzz` yet",
            hint=f"unset {FFX_SWITCH}: fuzz_ctl in the guest runs them then",
        )
    if build.targets:
        return Linux(target, variables=variables)
    if variables:
        raise NotSupported(
            f"{target.full_name} cannot be given {', '.join(variables)}: on Fuchsia its manifest has its environment",
            hint="set it in the component's manifest, and build that anew; or take environment out of the campaign",
        )
    return V1(target) if target.generation == "v1" else FuzzCtl(target)
