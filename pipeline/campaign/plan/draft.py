"""A campaign as it is written, before it is known which fuzzers the build has."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

from pipeline.builds.targets import dictionary
from pipeline.campaign.plan import options
from pipeline.campaign.plan.definition import Budget, Definition, FuzzerPlan
from pipeline.campaign.plan.problems import Problem, in_order, refuse
from pipeline.campaign.plan.source import CampaignSource, read_bounded
from pipeline.campaign.plan.table import LARGEST, Notes, TomlTable, whole_seconds
from pipeline.campaign.plan.toml_lines import KeyPath
from pipeline.errors import UsageError
from pipeline.fuzz import flags, sanitizers
from pipeline.settings import Allocation, CampaignSettings
from pipeline.text import goglob
from pipeline.text.printable import one_line
from pipeline.text.spelling import nearest

KEYS = ("name", "fuzzers", "exclude", "budget", "slice", "seed", "allocation", "options", "environment", "fuzzer")
FUZZER_KEYS = ("name", "budget", "slice", "options", "environment", "dictionary", "seeds")
"""The keys of a `[[fuzzer]]` table; KEYS are those of the whole campaign. docs/campaign.md explains all of them."""

_NAME = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}", re.ASCII)
_LARGEST_SEED = (1 << 32) - 1
_WRONG_LINES = 10  # told of one dictionary: a file that is no dictionary at all may have thousands
_NOTHING: Mapping[str, str] = MappingProxyType({})
_LEFT_OUT = "what is left out is as Topcoat needs it: see Sanitizers in docs/campaign.md"
_OF_ONE = "it is of one fuzzer: write it below [[fuzzer]]"
_OF_ALL = "it is of the whole campaign: write it above all [[fuzzer]]"


@dataclass(frozen=True)
class Pattern:
    """A pattern of full names, by the rules of `pipeline.text.goglob`, and its place in the source."""

    text: str
    path: KeyPath

    def among(self, names: Iterable[str]) -> set[str]:
        """The names that match the pattern."""
        return {name for name in names if goglob.match(self.text, name)}

    def hint(self, names: Collection[str], missing: Mapping[str, str] = _NOTHING) -> str:
        """What may be meant, if the pattern matches none of `names`. `missing` has hints for some other names."""
        for name in self.among(missing):
            return missing[name]
        package, _, last = self.text.rpartition("/")
        by_last = {name.rpartition("/")[2]: name for name in names}
        near = [by_last[each] for each in nearest(last, by_last, 3)] if goglob.has_magic(package) else []
        meant = sorted(name for name in names if last and last in name)[:3] or near or nearest(self.text, names, 3)
        if meant:
            return f"did you mean {', '.join(meant)}?"
        shown = ", ".join(sorted(names)[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"the build has {shown}{more}" if shown else "the build has no fuzzers at all"


@dataclass(frozen=True)
class FuzzerChoice:
    """Settings for some fuzzers. A field that is None is left to other settings."""

    budget: Budget | None = None
    slice: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    dictionary: Path | None = None
    seeds: tuple[Path, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def over(self, other: "FuzzerChoice") -> "FuzzerChoice":
        """Both settings together; these prevail, key by key, option by option, and variable by variable."""
        return FuzzerChoice(
            budget=self.budget or other.budget,
            slice=self.slice or other.slice,
            options={**other.options, **self.options},
            environment=_over(self.environment, other.environment),
            dictionary=self.dictionary or other.dictionary,
            seeds=other.seeds if self.seeds is None else self.seeds,
        )


def _over(these: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """Both environments together. Each option of a sanitizer is by itself: of what is said twice, the last counts."""
    joined = {name: f"{other[name]}:{these[name]}" for name in these if name in other and sanitizers.reads(name)}
    return {**other, **these, **joined}


@dataclass(frozen=True)
class Override:
    """Settings for the fuzzers that match a pattern."""

    pattern: Pattern
    choice: FuzzerChoice


@dataclass(frozen=True)
class Draft:
    """A campaign as it is written. If it has `problems`, all it is good for is to find more of them."""

    source: CampaignSource
    name: str = ""
    seed: int = 1
    allocation: Allocation = CampaignSettings.allocation
    fuzzers: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    common: FuzzerChoice = FuzzerChoice()
    """The settings for all fuzzers, with a budget and a slice unless there are problems."""
    overrides: tuple[Override, ...] = ()
    """Settings for some fuzzers. If several match the same fuzzer, the later prevails."""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    """What is odd, but does no harm; somebody should be told of it."""

    def expand(self, names: Collection[str], missing: Mapping[str, str] = _NOTHING) -> Definition:
        """The definition for a build whose fuzzers have these full names.

        `missing` has hints for some names that the build does not have. Raises SettingsError, which tells all problems.
        """
        refuse(self.source.name or self.name, self.problems_with(names, missing))
        plans = tuple(self._plan(name) for name in sorted(self._selected(names)))
        return Definition(self.name, self.seed, self.allocation, plans)

    def problems_with(self, names: Collection[str], missing: Mapping[str, str] = _NOTHING) -> tuple[Problem, ...]:
        """All that is wrong with the campaign for a build whose fuzzers have these full names."""
        if self.source.problems:
            return self.problems
        found = [*self.problems, *self._unmatched(names, missing)]
        if not found:
            found += self._unselected(self._selected(names))
        return in_order(found)

    def _selected(self, names: Collection[str]) -> set[str]:
        wanted = set().union(*(pattern.among(names) for pattern in self.fuzzers))
        return wanted.difference(*(pattern.among(names) for pattern in self.exclude))

    def _unmatched(self, names: Collection[str], missing: Mapping[str, str]) -> Iterator[Problem]:
        """Problems for the patterns that match no fuzzer of the build: most often they are misspelled."""
        overriding = (override.pattern for override in self.overrides)
        for pattern in (*self.fuzzers, *self.exclude, *overriding):
            if not pattern.among(names):
                message = f"no fuzzer of the build is named {pattern.text}"
                yield self.source.problem(pattern.path, message, pattern.hint(names, missing))

    def _unselected(self, selected: set[str]) -> Iterator[Problem]:
        if not selected:
            yield self.source.problem(("exclude",), "no fuzzer is left", "exclude fewer of them")
            return
        for override in self.overrides:
            if not override.pattern.among(selected):
                message = f"{override.pattern.text} is no part of the campaign, so nothing can be said of it"
                yield self.source.problem(override.pattern.path, message, "add it to fuzzers, or do not exclude it")

    def _plan(self, name: str) -> FuzzerPlan:
        choice = self.common
        for override in self.overrides:
            if override.pattern.among([name]):
                choice = override.choice.over(choice)
        budget, length = cast(Budget, choice.budget), cast(int, choice.slice)
        return FuzzerPlan(
            name=name,
            budget=budget,
            slice=min(length, budget.seconds or length),
            options=tuple(sorted(choice.options.items())),
            environment=tuple(sorted(choice.environment.items())),
            dictionary=choice.dictionary,
            seeds=choice.seeds or (),
        )


def look(path: Path, defaults: CampaignSettings) -> Draft:
    """Read a campaign's file. The draft tells what is wrong with it, if anything is."""
    return _draft(CampaignSource.file(path), defaults)


def read(path: Path, defaults: CampaignSettings) -> Draft:
    """Read a campaign's file. Raises SettingsError, whose `detail` lists all problems, each with its file and line."""
    draft = look(path, defaults)
    refuse(draft.source.name, draft.problems)
    return draft


def from_parameters(
    defaults: CampaignSettings,
    name: str,
    fuzzers: str,
    *,
    exclude: str = "",
    budget: str = "",
    slice_: str = "",
    seed: int | None = None,
    allocation: str = "",
) -> Draft:
    """The draft that a task's parameters describe; an empty one counts as not given.

    `fuzzers` and `exclude` are patterns separated by commas or blanks. Raises SettingsError, as `read` does.
    """
    given = {"name": name, "budget": budget, "slice": slice_, "allocation": allocation}
    lists = {"fuzzers": _words(fuzzers), "exclude": _words(exclude)}
    content: dict[str, object] = {key: value for key, value in (given | lists).items() if value}
    if seed is not None:
        content["seed"] = seed
    draft = _draft(CampaignSource("", content), defaults)
    refuse(name or "it", draft.problems)
    return draft


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _draft(source: CampaignSource, defaults: CampaignSettings) -> Draft:
    if source.problems:
        return Draft(source, problems=source.problems)
    notes = Notes()
    table = TomlTable(source, source.content, (), notes)
    table.only(KEYS, dict.fromkeys(("dictionary", "seeds"), _OF_ONE))
    table.require("name", '"nightly"')
    table.require("fuzzers", '["example-fuzzers/*"]')
    return Draft(
        source=source,
        name=_name(table),
        seed=table.whole("seed", 1, _LARGEST_SEED) or 1,
        allocation=cast(Allocation, table.choice("allocation", ("gain", "even")) or defaults.allocation),
        fuzzers=_fuzzers(table),
        exclude=tuple(_patterns(table, "exclude")),
        common=_choice(table).over(_default(table, defaults)),
        overrides=tuple(_overrides(table)),
        problems=in_order(notes.problems),
        warnings=in_order(notes.warnings),
    )


def _name(table: TomlTable) -> str:
    name = table.text("name") or ""
    if name and _NAME.fullmatch(name) is None:
        hint = "use letters, digits, - _ and ., at most 64 of them, and no dot at its beginning: it names a directory"
        table.refuse(f"name = {name!r} cannot be used", hint, "name")
    return name


def _fuzzers(table: TomlTable) -> tuple[Pattern, ...]:
    if table.content.get("fuzzers") == []:
        table.refuse("fuzzers is empty", 'write patterns of names: fuzzers = ["example-fuzzers/*"]', "fuzzers")
    return tuple(_patterns(table, "fuzzers"))


def _patterns(table: TomlTable, key: str) -> Iterator[Pattern]:
    for position, text in table.texts(key):
        yield from _pattern(table, text, key, position)


def _pattern(table: TomlTable, text: str, *keys: str | int) -> Iterator[Pattern]:
    try:
        goglob.compiled(text)
        yield Pattern(text, (*table.path, *keys))
    except UsageError as error:
        table.refuse(error.message, error.hint, *keys)


def _default(table: TomlTable, defaults: CampaignSettings) -> FuzzerChoice:
    """Budget and slice of luigi.cfg. One that cannot be used is a problem only if the campaign does not set its own."""
    given = {"budget": defaults.budget, "slice": defaults.slice}
    seconds = {}
    for key, value in given.items():
        try:
            seconds[key] = whole_seconds(value)
        except UsageError as error:
            if key not in table.content:
                place = f"[campaign] {key}"
                problem = Problem("", None, place, f"{value:g} seconds cannot be used", f"in luigi.cfg, {error.hint}")
                table.notes.problems.append(problem)
    return FuzzerChoice(Budget(seconds.get("budget")), seconds.get("slice"))


def _choice(table: TomlTable) -> FuzzerChoice:
    return FuzzerChoice(_budget(table), table.seconds("slice"), _options(table), environment=_environment(table))


def _budget(table: TomlTable) -> Budget | None:
    if not isinstance(table.content.get("budget"), dict):
        seconds = table.seconds("budget")
        return None if seconds is None else Budget(seconds=seconds)
    inner = cast(TomlTable, table.table("budget"))
    inner.only(("runs",), {})
    inner.require("runs", "100000")
    runs = inner.whole("runs", 1, LARGEST)
    return None if runs is None else Budget(runs=runs)


def _options(table: TomlTable) -> dict[str, str]:
    found: dict[str, str] = {}
    inner = table.table("options")
    for name, value in inner.content.items() if inner else ():
        try:
            found[name] = options.encoded(name, value)
        except options.Misused as error:
            table.refuse(error.message, error.hint, "options", name)
        else:
            if not flags.is_known(name):
                table.warn(f"libFuzzer has no option {name}", flags.hint_for(name), "options", name)
    return found


def _environment(table: TomlTable) -> dict[str, str]:
    found: dict[str, str] = {}
    inner = table.table("environment")
    for name, value in inner.content.items() if inner else ():
        try:
            found[name] = options.variable(name, value)
        except options.Misused as error:
            table.refuse(error.message, error.hint, "environment", name)
        else:
            for loss in sanitizers.loses({name: found[name]}):
                table.warn(loss, _LEFT_OUT, "environment", name)
    return found


def _overrides(table: TomlTable) -> Iterator[Override]:
    for inner in table.tables("fuzzer"):
        inner.only(FUZZER_KEYS, dict.fromkeys(set(KEYS) - set(FUZZER_KEYS), _OF_ALL))
        inner.require("name", '"PACKAGE/NAME", the full name of a fuzzer, or a pattern')
        choice = replace(_choice(inner), dictionary=_dictionary(inner), seeds=_seeds(inner))
        name = inner.text("name")
        yield from (Override(pattern, choice) for pattern in (_pattern(inner, name, "name") if name else ()))


def _dictionary(table: TomlTable) -> Path | None:
    text = table.text("dictionary")
    if text is None:
        return None
    path = table.source.directory / text
    try:
        wrong = list(dictionary.wrong_lines(read_bounded(path)))
    except OSError as error:
        table.refuse(f"the dictionary {text} cannot be used: {error.strerror}", _relative(table), "dictionary")
        return None
    table.notes.problems.extend(_wrong_lines(table, text, wrong))
    return path


def _wrong_lines(table: TomlTable, text: str, wrong: list[tuple[int, str, str]]) -> Iterator[Problem]:
    shown = one_line(str(Path(table.source.name).parent / text))
    for line, message, hint in wrong[:_WRONG_LINES]:
        yield Problem(shown, line, "", message, hint)
    if more := wrong[_WRONG_LINES:]:
        message = f"from here on, {len(more):,} more lines are wrong"
        yield Problem(shown, more[0][0], "", message, "is it a dictionary at all?")


def _seeds(table: TomlTable) -> tuple[Path, ...] | None:
    if "seeds" not in table.content:
        return None
    found = []
    for position, text in table.texts("seeds"):
        path = table.source.directory / text
        if problem := _unreadable(path):
            table.refuse(f"the seeds {text} cannot be used: {problem}", _relative(table), "seeds", position)
        found.append(path)
    return tuple(found)


def _relative(table: TomlTable) -> str:
    return f"paths are relative to {one_line(str(table.source.directory))}"


def _unreadable(path: Path) -> str:
    """Why the seeds at `path` cannot be read; empty if they can."""
    try:
        path.stat()
    except OSError as error:
        return error.strerror or str(error)
    if path.is_dir():
        return "" if os.access(path, os.R_OK | os.X_OK) else "it cannot be listed"
    if not path.is_file():
        return "it is neither a file nor a directory"
    return "" if os.access(path, os.R_OK) else "it cannot be read"
