"""What each fuzzer of a campaign is today: the digests that decide whether its slices still count."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.builds.build import Build
from pipeline.campaign.ledger import Subject
from pipeline.campaign.plan.definition import Definition
from pipeline.errors import MissingResource, SettingsError
from pipeline.fuzz.styles import style_of
from pipeline.fuzz.targets import FuzzTargets
from pipeline.host.faults import host_faults
from pipeline.images import cpio
from pipeline.store.digests import combined

_ARCHIVE = "fuzzers.cpio"
_SYSTEM = "system.cpio"
"""The names of the two archives that the demo guest boots, one after the other."""
_HOME = "data/fuzz/"
_LIBRARIES = "lib/"


@dataclass(frozen=True)
class Subjects:
    """The fuzzers of a campaign as they are today."""

    of: Mapping[str, Subject]
    """The subjects by the fuzzers' full names."""
    build: str
    """The digest of all that the build gives to the guests."""
    boot: str = ""
    """The digest of what the canary depends on, which may be less than the build; empty if not known."""


def find(
    definition: Definition, build: Build, demo: Path, digest: Callable[[Path], str], canary: Sequence[str] = ()
) -> Subjects:
    """The subject of each fuzzer of the definition. `demo` is the directory of the demo guest's parts.

    A fuzzer of the demo guest has a digest of its own, of its program, the files beside it, and the libraries. Of any
    other guest, even one that boots a file of the user's, only whole images are known, so that a new build makes the
    slices of all fuzzers stale. `canary` are the full names of the canary's fuzzers.

    Raises MissingResource, StoreError, and SettingsError if the guest does not have all of these fuzzers.
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
    """Raise what is wrong with the definition for guests of this build, as far as that is known before they boot.

    That is SettingsError if they do not have all of its fuzzers, NotSupported if these cannot be given their
    environment.
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
    """The digests of all fuzzers in the guest, by full name; None if it boots something else than Topcoat has made."""
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
