"""The fuzzers of a build.

A build of Fuchsia lists them in fuzzers.json (first generation) and tests.json (second generation). It has one of the
files or both; if it has neither, its fuzzers are not known. A fuzzer that both list is of the second generation. Those
of the Linux guest are the targets on its disk, unless the user names such a file: then that counts.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.builds.build import Build
from pipeline.builds.targets.listing import ListedTarget, read
from pipeline.builds.targets.places import TargetsPlaces
from pipeline.errors import MissingResource, ResourceDamaged, UnknownFuzzer
from pipeline.text.printable import one_line, printable

log = logging.getLogger("topcoat")

Generation = Literal["v1", "v2"]

_EXAMPLES = "example-fuzzers"
_SHOWN_EXAMPLES = ("out_of_memory_fuzzer", "toy_example_arbitrary")
_RULE = "fuchsia_fuzzer_package"
_URL = re.compile(r"fuchsia-pkg://[^/]+/([^#]+)#meta/([^.]+)\.cm")
# Wider than in https://fuchsia.dev/fuchsia-src/concepts/packages/package_url, for the sake of components' names
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=~-]{0,199}")
_REBUILD = "build it anew; is it the file of another release?"


@dataclass(frozen=True, order=True)
class FuzzTarget:
    """One fuzzer: its package, its name in the package, and its generation, which decides how it is run."""

    package: str
    name: str
    generation: Generation = "v2"
    listed: ListedTarget | None = field(default=None, compare=False)
    """What is known of a target on the Linux guest's disk; None for any other fuzzer."""

    @property
    def full_name(self) -> str:
        """The name by which users call it: PACKAGE/NAME."""
        return f"{self.package}/{self.name}"

    @property
    def package_url(self) -> str:
        """The URL of its package; the host is always fuchsia.com, whatever the build says."""
        return f"fuchsia-pkg://fuchsia.com/{self.package}"

    @property
    def url(self) -> str:
        """The URL of its component, by which the guest finds it."""
        return f"{self.package_url}#meta/{self.name}.{'cmx' if self.generation == 'v1' else 'cm'}"

    @property
    def is_example(self) -> bool:
        """Whether it is one of Fuchsia's examples."""
        return self.package == _EXAMPLES

    @property
    def is_listed(self) -> bool:
        """Whether `undercoat list_fuzzers` names it: all but the examples, of which it names two."""
        return not self.is_example or self.name in _SHOWN_EXAMPLES


@dataclass(frozen=True)
class FuzzTargets:
    """All fuzzers of a build, sorted by package and name."""

    all: tuple[FuzzTarget, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    """What to do about targets of the Linux guest that were left out of its disk, by their full names."""
    canary: tuple[FuzzTarget, ...] = ()
    """Topcoat's own targets in a guest for those of a user: `find` finds them, and nothing else tells of them."""

    @classmethod
    def of(cls, build: Build) -> "FuzzTargets":
        """Read the lists of the build. Raises MissingResource if it has none, ResourceDamaged if one is wrong."""
        if build.targets and build.lists_targets:
            return cls._of_listing(build.targets)
        first, second = _content(build, "fuzzers.json"), _content(build, "tests.json")
        if first is None and second is None:
            raise _no_list(build)
        targets: list[FuzzTarget] = []
        if first is not None:
            targets += _of_first_generation(*first)
        if second is not None:
            targets += _of_second_generation(*second)
        elif not build.targets:
            log.warning("the build has no tests.json, so none of its fuzzers can be of the second generation")
        found = {target.full_name: target for target in targets if _is_sound(target)}
        return cls(tuple(sorted(found.values())))

    @classmethod
    def _of_listing(cls, places: TargetsPlaces) -> "FuzzTargets":
        listing = read(places.listing)
        found = sorted(FuzzTarget(one.package, one.name, listed=one) for one in listing.targets)
        missing = {one.full_name: f"{one.reason}; {one.hint}" for one in listing.left_out}
        own = tuple(one for one in found if one.package == places.package)
        return cls(own, missing, tuple(one for one in found if one.package != places.package))

    @property
    def names(self) -> list[str]:
        """The full names of all fuzzers."""
        return [target.full_name for target in self.all]

    @property
    def listed(self) -> tuple[FuzzTarget, ...]:
        """The fuzzers that `undercoat list_fuzzers` names. `find` finds the others too."""
        return tuple(target for target in self.all if target.is_listed)

    def find(self, name: str) -> FuzzTarget:
        """Find the fuzzer with this full name. Raises UnknownFuzzer."""
        for target in (*self.all, *self.canary):
            if target.full_name == name:
                return target
        raise UnknownFuzzer(f"no such fuzzer: {name}", hint=self.missing.get(name) or self._nearest(name))

    def _nearest(self, name: str) -> str:
        from difflib import get_close_matches

        near = get_close_matches(name, self.names, 3) or self.names[:3]
        return f"the build has {', '.join(near)}" if near else "the build has no fuzzers at all"


def _is_sound(target: FuzzTarget) -> bool:
    """Whether its names can be names of directories: a file claims them, and directories are deleted by them."""
    if _NAME.fullmatch(target.package) and _NAME.fullmatch(target.name):
        return True
    log.warning("a fuzzer of the build is left out: %s cannot be a name", one_line(target.full_name, 80))
    return False


def _content(build: Build, key: str) -> tuple[Path, object] | None:
    """Read one of the build's lists: its path and its JSON; None if the build has no such file."""
    if key not in build.resources:
        return None
    path = build.path(key)
    try:
        return path, json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MissingResource(
            f"the build's {key} cannot be read: {path}: {error.strerror}", hint="see to its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is no JSON: {error}") from error


def _no_list(build: Build) -> MissingResource:
    for key in ("tests.json", "fuzzers.json"):
        if key in build.resources:
            return MissingResource(
                f"the build has neither fuzzers.json nor tests.json: {build.path(key)}: there is no such file",
                hint=build.resources[key].setting,
            )
    return MissingResource(
        f"the {build.kind} build has no list of fuzzers", hint="set [build] tests.json = PATH in luigi.cfg"
    )


def _damaged(path: Path, problem: str) -> ResourceDamaged:
    return ResourceDamaged(f"{path}: {printable(problem)}", hint=_REBUILD)


def _objects(path: Path, content: object) -> Iterator[dict[str, object]]:
    if not isinstance(content, list):
        raise _damaged(path, "it is no list")
    for entry in content:
        if not isinstance(entry, dict):
            raise _damaged(path, f"an entry is no object: {str(entry)[:80]}")
        yield entry


def _of_first_generation(path: Path, content: object) -> Iterator[FuzzTarget]:
    """Read fuzzers.json. Entries with one label describe one fuzzer; of each key the last non-empty value counts."""
    merged: dict[str, dict[str, str]] = {}
    for entry in _objects(path, content):
        texts = {key: value for key, value in entry.items() if isinstance(value, str)}
        if len(texts) != len(entry):
            raise _damaged(path, f"a value is no text: {str(entry)[:80]}")
        if not texts.get("label"):
            raise _damaged(path, f"an entry has no label: {str(entry)[:80]}")
        merged.setdefault(texts["label"], {}).update({key: value for key, value in texts.items() if value})
    for label, facts in merged.items():
        for key in ("package", "fuzzer"):
            if key not in facts:
                raise _damaged(path, f"{one_line(label, 80)} has no {key}")
        yield FuzzTarget(facts["package"], facts["fuzzer"], "v1")


def _of_second_generation(path: Path, content: object) -> Iterator[FuzzTarget]:
    for entry in _objects(path, content):
        test = entry.get("test")
        if not isinstance(test, dict) or test.get("build_rule") != _RULE:
            continue
        url = str(test.get("package_url", ""))
        match = _URL.fullmatch(url)
        if match is None:
            raise _damaged(path, f"found test with unexpected url: {url!r}")
        yield FuzzTarget(match[1], match[2], "v2")
