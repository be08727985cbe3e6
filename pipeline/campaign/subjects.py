"""What each fuzzer of a campaign is today: the digests that decide whether its slices still count."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.build import Build
from pipeline.campaign.definition import Definition
from pipeline.digests import combined
from pipeline.errors import MissingResource, SettingsError
from pipeline.faults import host_faults
from pipeline.fuzz_targets import FuzzTargets
from pipeline.fuzzer.styles import style_of
from pipeline.images import cpio
from pipeline.ledger import Subject

_ARCHIVE = "fuzzers.cpio"
_SYSTEM = "system.cpio"
"""The two that the demo guest boots, one behind the other."""
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


def find(
    definition: Definition, build: Build, demo: Path, digest: Callable[[Path], str], canary: Sequence[str] = ()
) -> Subjects:
    """The subject of each fuzzer of the definition. `demo` is the directory of the demo guest's parts.

    A fuzzer of the demo guest has a digest of its own: of its program, what lies beside that, and the libraries. Of any
    other guest, also one that is booted from a file of the user's, only the images are known as a whole, so there a new
    build makes the slices of all fuzzers stale. `canary`: the full names of the fuzzers of which that consists.

    Raises MissingResource, StoreError, and SettingsError if the guest has not all of these fuzzers.
    """
    whole = combined([digest(build.path(key)) for key in ("zbi", "blk", "kernel")])
    own = _own(build, demo, digest)
    if own is None:
        builds, guest = dict.fromkeys([plan.name for plan in definition.fuzzers], whole), whole
    else:
        _refuse_lack(definition, build, own)
        builds, proving = dict(own), [own[name] for name in canary if name in own]
        guest = combined([*(digest(path) for path in (demo / _SYSTEM, *build.paths("blk", "kernel"))), *proving])
    names = [build.path(key) for key in ("symbolizer", "llvm-symbolizer") if key in build.resources]
    return Subjects(
        {plan.name: Subject(plan.name, builds[plan.name], plan.digest()) for plan in definition.fuzzers},
        whole,
        combined([guest, *(digest(path) for path in names if path.is_file())]),
    )


def require(definition: Definition, build: Build, demo: Path, digest: Callable[[Path], str]) -> None:
    """Raise what is wrong with the definition for the guests of this build, as far as that is known before they boot.

    SettingsError if they have not all of its fuzzers, NotSupported if these cannot be given their environment.
    """
    targets = FuzzTargets.of(build)
    for plan in definition.fuzzers:
        style_of(build, targets.find(plan.name), variables=dict(plan.environment))
    if (demo / _ARCHIVE).exists() and (own := _own(build, demo, digest)) is not None:
        _refuse_lack(definition, build, own)


def _refuse_lack(definition: Definition, build: Build, own: Collection[str]) -> None:
    lacking = [plan.name for plan in definition.fuzzers if plan.name not in own]
    lists = [key for key in ("tests.json", "fuzzers.json") if key in build.resources and key not in build.demo_made]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        said = ", ".join(str(build.path(key)) for key in lists) or "its list"
        raise SettingsError(
            f"the demo guest has no {lacking[0]}{more}, which {said} names",
            hint="correct the list ([build] tests.json, fuzzers.json), or boot a guest that has it: [build] zbi = PATH",
        )


def _own(build: Build, demo: Path, digest: Callable[[Path], str]) -> Mapping[str, str] | None:
    """The digests of all fuzzers that the guest has; None if it does not boot what Topcoat has made."""
    return _of_demo(demo / _ARCHIVE, digest) if "zbi" in build.demo_made else None


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
