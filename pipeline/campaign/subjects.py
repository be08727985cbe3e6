"""What each fuzzer of a campaign is today: the digests that decide whether its slices still count."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.builds.build import Build
from pipeline.builds.targets import listing
from pipeline.builds.targets.places import TargetsPlaces
from pipeline.campaign.ledger import Subject
from pipeline.campaign.plan.definition import Budget, Definition, FuzzerPlan
from pipeline.errors import SettingsError
from pipeline.fuzz.styles import style_of
from pipeline.fuzz.targets import FuzzTargets
from pipeline.host.faults import host_faults
from pipeline.store.digests import combined

_SYSTEM, _LIBRARIES = "system.cpio", "libraries"
"""The archive with the Linux guest's own system, and the directory with the libraries that are in it."""


@dataclass(frozen=True)
class Subjects:
    """The fuzzers of a campaign as they are today."""

    of: Mapping[str, Subject]
    """The subjects by the fuzzers' full names."""
    build: str
    """The digest of all that the build gives to the guests."""
    boot: str = ""
    """The digest of what the canary depends on, which may be less than the build; empty if not known."""
    targets: Mapping[str, str] = field(default_factory=dict)
    """The digests of targets by themselves, by full names, as the list of a guest's targets has them."""


def find(
    definition: Definition, build: Build, demo: Path, digest: Callable[[Path], str], canary: Sequence[str] = ()
) -> Subjects:
    """The subject of each fuzzer of the definition. `demo` is the directory of the Linux guest's parts.

    A target of the Linux guest has a digest of its own, of its program, the files beside it, and the libraries, also
    those of the guest. Of any other guest, even one that boots a file of the user's, only whole images are known, so
    that a new build makes the slices of all fuzzers stale. `canary` are the full names of the canary's fuzzers.

    Raises MissingResource, StoreError, and SettingsError if the guest does not have all of these fuzzers.
    """
    images = [*build.paths("zbi", "blk", "kernel"), *([build.targets.image] if build.targets else [])]
    whole = combined([digest(path) for path in images])
    listed = _listed(build.targets) if build.targets and build.renews else None
    if listed is None:
        builds, guest = dict.fromkeys([plan.name for plan in definition.fuzzers], whole), whole
    else:
        _refuse_lack(definition, build, listed)
        builds = _with_libraries(listed, demo, digest)
        proving = [builds[name] for name in canary if name in builds]
        guest = combined([*(digest(path) for path in (demo / _SYSTEM, *build.paths("blk", "kernel"))), *proving])
    names = [build.path(key) for key in ("symbolizer", "llvm-symbolizer") if key in build.resources]
    return Subjects(
        {plan.name: Subject(plan.name, builds[plan.name], plan.digest()) for plan in definition.fuzzers},
        whole,
        combined([guest, *(digest(path) for path in names if path.is_file())]),
        listed or {},
    )


def build_of(fuzzer: str, build: Build, demo: Path, digest: Callable[[Path], str]) -> str:
    """The digest of one fuzzer as it is today; see `find`. Raises what `find` and `require` raise."""
    alone = Definition("one", 1, "even", (FuzzerPlan(fuzzer, Budget(runs=1), 1),))
    require(alone, build)
    return find(alone, build, demo, digest).of[fuzzer].build


def require(definition: Definition, build: Build) -> None:
    """Raise what is wrong with the definition for guests of this build, as far as that is known before they boot.

    That is SettingsError if they do not have all of its fuzzers, NotSupported if these cannot be given their
    environment.
    """
    targets = FuzzTargets.of(build)
    for plan in definition.fuzzers:
        style_of(build, targets.find(plan.name), variables=dict(plan.environment))
    if build.targets and build.renews and build.targets.listing.exists():
        _refuse_lack(definition, build, _listed(build.targets))


def _refuse_lack(definition: Definition, build: Build, own: Collection[str]) -> None:
    lacking = [plan.name for plan in definition.fuzzers if plan.name not in own]
    lists = [key for key in ("tests.json", "fuzzers.json") if key in build.resources]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        said = ", ".join(str(build.path(key)) for key in lists) or "its list"
        raise SettingsError(
            f"the Linux guest has no {lacking[0]}{more}, which {said} names",
            hint="correct the list ([build] tests.json, fuzzers.json), or boot a guest that has it: [build] zbi = PATH",
        )


def _with_libraries(listed: Mapping[str, str], demo: Path, digest: Callable[[Path], str]) -> dict[str, str]:
    """The digests of targets, with the libraries of the guest."""
    with host_faults("reading the libraries of the Linux guest"):
        shared = [f"{path.name} {digest(path)}" for path in sorted((demo / _LIBRARIES).iterdir())]
    return {name: combined([one, *shared]) for name, one in listed.items()}


def _listed(places: TargetsPlaces) -> Mapping[str, str]:
    return {target.full_name: target.digest for target in listing.read(places.listing).targets}
