"""The ways to run a fuzzer, one for each kind of guest."""

import os
import re
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from pipeline.build import Build
from pipeline.errors import CommandExited, NotSupported, SettingsError
from pipeline.fuzz_targets import FuzzTarget
from pipeline.fuzzer.arguments import MUTABLE, Arguments, mutable
from pipeline.fuzzer.connector import Command, Connector
from pipeline.fuzzer.sanitizers import environment
from pipeline.size import readable

FFX_SWITCH = "UNDERCOAT_USE_FFX_FUZZ"
_TRUE = ("1", "t", "T", "true", "True", "TRUE")
_FALSE = ("0", "f", "F", "false", "False", "FALSE")

PREPARE_LIMIT = 300.0
"""Seconds that one command of a preparation may take: a package may have to be loaded."""

STOP_LIMIT = 30.0
"""Seconds that it may take to end what runs of a fuzzer."""

LEAST_BYTES = 16 << 20
"""That a guest's disk must have left for the next fuzzer; of a small disk a twentieth."""

LEAST_FILES = 1000
"""That it must take, likewise."""

_LEAST_PART = 0.05
_SPACE = re.compile(rb"(\d{1,18}) (\d{1,18}) (\d{1,18}) (\d{1,18}) (\d{1,18})\s*")
_NOTHING_TO_KILL = 255  # killall's exit code

_LIBFUZZER = frozenset((0, 1, 70, 71, 77))
"""Well; what a sanitizer found; timeout; out of memory; crash."""


class Style(Protocol):
    """How a fuzzer is run in one kind of guest."""

    name: str
    merged: bool
    """Whether its error output belongs to its output, and comes as a stream of its own."""
    leaves: bool
    """Whether processes that it has started may run on when it has ended."""

    def absolute(self, path: str) -> str:
        """The path in the guest for what the fuzzer and its users call `path`."""

    def prepare(self, connector: Connector) -> None:
        """End what runs of the fuzzer, and delete its data."""

    def command(self, connector: Connector, arguments: Arguments) -> Command:
        """The command that runs the fuzzer, with translated arguments."""

    def stop(self, connector: Connector) -> None:
        """End what runs of the fuzzer, after its command has been killed, or has ended and left something behind."""

    def shortage(self, connector: Connector) -> str:
        """What the guest's disk has left, if that is too little for a fuzzer to keep what it finds; empty if not."""

    def accepts(self, status: int, arguments: Arguments) -> bool:
        """Whether a fuzzer that did its work may exit so."""


class V1:
    """A component of the first generation, run by its URL."""

    name = "v1"
    merged = True
    leaves = False  # they are in the component's job, which ends with it

    def __init__(self, target: FuzzTarget) -> None:
        self._target = target
        self._tmp = f"/tmp/r/sys/fuchsia.com:{target.package}:0#meta:{target.name}.cmx"

    def absolute(self, path: str) -> str:
        """data/ and tmp/ are its storage, pkg/ its package; the rest is the guest's root."""
        if mutable(path).startswith(MUTABLE):
            return f"{self._tmp}/{mutable(path).removeprefix(MUTABLE)}"
        if path.startswith("pkg/"):
            return f"/pkgfs/packages/{self._target.package}/0/{path.removeprefix('pkg/')}"
        return path if path.startswith("/") else f"/{path}"

    def prepare(self, connector: Connector) -> None:
        """Load its package, end what runs of it, and empty its storage."""
        connector.command("pkgctl", "resolve", self._target.package_url).run(PREPARE_LIMIT)
        self.stop(connector)
        connector.command(f"rm -rf {shlex.quote(self._tmp)}/*", shell=True).run(PREPARE_LIMIT)

    def command(self, connector: Connector, arguments: Arguments) -> Command:
        """The command that runs it."""
        return connector.command("run", self._target.url, *arguments.words)

    def stop(self, connector: Connector) -> None:
        """End what runs of it."""
        try:
            connector.command("killall", self._target.package_url).run(STOP_LIMIT)
        except CommandExited as error:
            if error.status != _NOTHING_TO_KILL:
                raise

    def shortage(self, _connector: Connector) -> str:
        """Nothing is known of its disk."""
        return ""

    def accepts(self, status: int, _arguments: Arguments) -> bool:
        """What libFuzzer exits with, whatever it found."""
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
        """Everything is in the directory that `fuzz_ctl` has for it; data/ and tmp/ are that directory itself."""
        if path.startswith("/"):
            return path
        return f"{self._directory}/{mutable(path).removeprefix(MUTABLE)}"

    def prepare(self, connector: Connector) -> None:
        """Have `fuzz_ctl` do it."""
        connector.command("fuzz_ctl", "reset", self._target.url).run(PREPARE_LIMIT)

    def command(self, connector: Connector, arguments: Arguments) -> Command:
        """The command that runs it."""
        return connector.command("fuzz_ctl", "run_libfuzzer", self._target.url, *arguments.words)

    def stop(self, _connector: Connector) -> None:
        """Nothing: a fuzzer that `fuzz_ctl` leaves behind is stopped by the next preparation."""

    def shortage(self, _connector: Connector) -> str:
        """Nothing is known of its disk."""
        return ""

    def accepts(self, status: int, _arguments: Arguments) -> bool:
        """`fuzz_ctl` exits with 0, whatever was found."""
        return status == 0


class Linux:
    """A program of the demo guest in PACKAGE/FUZZER/pkg, run in the directory above, so that tmp/ is its storage."""

    name = "linux"
    merged = False  # its output is its error output
    leaves = True

    _INTERRUPTED = 72
    _CODES = ("timeout_exitcode", "error_exitcode")

    def __init__(
        self, target: FuzzTarget, root: str = "/data/fuzz", variables: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`variables`: of its environment, besides those that all have."""
        self._environment = [f"{name}={value}" for name, value in environment({"TMPDIR": "tmp", **variables}).items()]
        self._program = f"pkg/{target.name}"
        self._directory = f"{root}/{target.full_name}"

    def absolute(self, path: str) -> str:
        """Everything is in its directory, and data/ is tmp/ as for the others."""
        if path.startswith("/"):
            return path
        return f"{self._directory}/{'tmp' if path == 'data' else mutable(path)}"

    def prepare(self, connector: Connector) -> None:
        """End what runs of it, and make its data/ and tmp/ anew."""
        self.stop(connector)
        data, tmp = (shlex.quote(f"{self._directory}/{name}") for name in ("data", "tmp"))
        line = f"rm -rf {data} {tmp} && mkdir -p {data} {tmp}"
        connector.command(line, shell=True).run(PREPARE_LIMIT)

    def command(self, connector: Connector, arguments: Arguments) -> Command:
        """A line for the shell. Its exit codes for what cannot be run are none that a fuzzer has.

        libFuzzer and the sanitizers speak on stderr; what the target itself prints to stdout is of no use to anybody.
        """
        words = shlex.join(["env", *self._environment, self._program, *arguments.words])
        line = f"cd {shlex.quote(self._directory)} 2>&1 || exit 127; exec {words} 2>&1 >/dev/null"
        return connector.command(line, shell=True)

    def stop(self, connector: Connector) -> None:
        """Kill all that runs its program or works in its directory; an SSH server need not do that."""
        line = _KILL.format(directory=shlex.quote(self._directory), program=shlex.quote(self._program))
        connector.command(line, shell=True).run(STOP_LIMIT)

    def shortage(self, connector: Connector) -> str:
        """See Style. A guest whose answer cannot be understood is short of nothing."""
        said = connector.command("stat", "-f", "-c", "%a %b %S %d %c", self._directory).output(STOP_LIMIT)
        if not (facts := _SPACE.fullmatch(said)):
            return ""
        free, blocks, size, nodes, most_nodes = map(int, facts.groups())
        if free * size < min(LEAST_BYTES, blocks * size * _LEAST_PART):
            return f"{readable(free * size)} are left on its disk of {readable(blocks * size)}"
        return f"it can make {nodes} more files" if nodes < min(LEAST_FILES, most_nodes * _LEAST_PART) else ""

    def accepts(self, status: int, arguments: Arguments) -> bool:
        """What libFuzzer exits with, interrupted or as its options say."""
        asked = {arguments.options.get(name) for name in self._CODES}
        return status in _LIBFUZZER or status == self._INTERRUPTED or str(status) in asked


# One that starts others, as -jobs does, may start another while it is looked for; hence until none is found
_KILL = """d={directory}; n=0
while found=; for p in /proc/[0-9]*; do
  if [ "$p/cwd" -ef "$d" ] || [ "$p/exe" -ef "$d/"{program} ]; then kill -9 "${{p##*/}}" && found=y; fi
done; [ "$found" ]; do
  n=$((n + 1)); if [ $n -gt 50 ]; then echo "it cannot be killed" >&2; exit 1; fi
  sleep 0.1
done"""


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
    """How the fuzzer is run, with these variables of its own in its environment.

    Raises SettingsError, and NotSupported where `ffx fuzz` is asked for, or variables where a guest takes none.
    """
    if wants_ffx(environ):
        raise NotSupported(
            f"{FFX_SWITCH}={environ[FFX_SWITCH]}: fuzzers cannot be run by `ffx fuzz` yet",
            hint=f"unset {FFX_SWITCH}: fuzz_ctl in the guest runs them then",
        )
    if build.kind == "demo":
        return Linux(target, variables=variables)
    if variables:
        raise NotSupported(
            f"{target.full_name} cannot be given {', '.join(variables)}: on Fuchsia its manifest has its environment",
            hint="set it in the component's manifest, and build that anew; or take environment out of the campaign",
        )
    return V1(target) if target.generation == "v1" else FuzzCtl(target)
