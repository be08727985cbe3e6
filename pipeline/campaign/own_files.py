"""The files that targets consist of themselves, as the host keeps them: programs and libraries as they were built.

Of Fuchsia there are none: a build there does not tell which of its files a fuzzer consists of.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from pipeline.builds.build import Build
from pipeline.builds.targets import listing
from pipeline.builds.targets.places import IMAGE_FILES, TargetsPlaces
from pipeline.campaign.subjects import Subjects
from pipeline.fuzz.crashes.store import OwnFiles
from pipeline.host.faults import host_faults


def of(build: Build, subjects: Subjects) -> OwnFiles:
    """What tells the files of the fuzzers as they are built in these subjects; nothing once they were built again.

    The function raises MissingResource, ResourceDamaged or StoreError.
    """

    def own_files(fuzzer: str, digest: str) -> Mapping[str, Path]:
        subject = subjects.of.get(fuzzer)
        if build.targets is None or subject is None or subject.build != digest:
            return {}
        return _files(build.targets, fuzzer, subjects.targets.get(fuzzer, ""))

    return own_files


def _files(places: TargetsPlaces, fuzzer: str, digest: str) -> Mapping[str, Path]:
    """The target's program, and all in its package that is no other target's program."""
    listed = {target.full_name: target for target in listing.read(places.listing).targets}
    target = listed.get(fuzzer)
    if target is None or target.digest != digest:
        return {}
    others = {one.program for one in listed.values()} - {target.program}
    with host_faults("looking for a target's own files"):
        return {name: path for name, path in _kept(places, target.package) if name not in others}


def _kept(places: TargetsPlaces, package: str) -> Iterator[tuple[str, Path]]:
    """All programs and libraries of a package: by their paths in the guest, those of the host."""
    for path in sorted((places.files / package).rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(IMAGE_FILES / PurePosixPath(path.relative_to(places.files))), path
