"""What each fuzzer of a campaign is today: the digests that decide whether its slices still count."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.build import Build
from pipeline.campaign.definition import Definition
from pipeline.digests import combined
from pipeline.errors import MissingResource
from pipeline.faults import host_faults
from pipeline.images import cpio
from pipeline.ledger import Subject

_HOME = "data/fuzz/"
_LIBRARIES = "lib/"


@dataclass(frozen=True)
class Subjects:
    """The fuzzers of a campaign as they are today."""

    of: Mapping[str, Subject]
    """By name."""
    build: str
    """Digest of all that the build gives to the guests."""
    boot: str = ""
    """Digest of what the canary's way depends on, if that is known and is less."""


def find(definition: Definition, build: Build, demo: Path, digest: Callable[[Path], str]) -> Subjects:
    """The subject of each fuzzer of the definition. `demo` is the directory of the demo guest's parts.

    A fuzzer of the demo guest has a digest of its own: of its program, what lies beside that, and the libraries. Of a
    Fuchsia build only the images are known as a whole, so there a new build makes the slices of all fuzzers stale.

    Raises MissingResource, StoreError.
    """
    whole = combined([digest(build.path(key)) for key in ("zbi", "blk", "kernel")])
    builds: Mapping[str, str] = dict.fromkeys([plan.name for plan in definition.fuzzers], whole)
    if build.kind == "demo":
        builds = _of_demo(demo / "fuzzers.cpio", digest)
    return Subjects(
        {plan.name: Subject(plan.name, builds[plan.name], plan.digest()) for plan in definition.fuzzers}, whole
    )


_known: dict[str, dict[str, str]] = {}  # luigi asks several times


def _of_demo(archive: Path, digest: Callable[[Path], str]) -> Mapping[str, str]:
    try:
        whole = digest(archive)
    except OSError as error:
        raise MissingResource(
            f"the demo guest's fuzzers are not there: {archive}", hint="make them: luigi --module tasks DemoFuzzers"
        ) from error
    if whole not in _known:
        with host_faults("reading the demo guest's fuzzers"):
            _known[whole] = _in_archive(archive.read_bytes())
    return _known[whole]


def _in_archive(data: bytes) -> dict[str, str]:
    from blake3 import blake3

    parts: dict[str, list[str]] = {}
    for entry in cpio.decode(data):
        if entry.name.startswith(_HOME) and entry.name.count("/") > 3:
            owner = "/".join(entry.name.removeprefix(_HOME).split("/")[:2])
        elif entry.name.startswith(_LIBRARIES):
            owner = ""
        else:
            continue
        parts.setdefault(owner, []).append(f"{entry.name} {blake3(entry.data).hexdigest()}")
    shared = parts.pop("", [])
    return {
        owner: f"b3:{blake3('|'.join(sorted([*shared, *own])).encode()).hexdigest()}" for owner, own in parts.items()
    }
