"""A campaign as it is written, before it is known which fuzzers the build has."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

from pipeline import goglob
from pipeline.campaign import dictionary, options
from pipeline.campaign.definition import Budget, Definition, FuzzerPlan
from pipeline.campaign.problems import Problem, in_order, nearest, refuse
from pipeline.campaign.source import Source, read_bounded
from pipeline.campaign.table import LARGEST, Notes, Table, whole_seconds
from pipeline.campaign.toml_lines import KeyPath
from pipeline.errors import UsageError
from pipeline.settings import Allocation, Campaign
from pipeline.text import one_line

KEYS = ("name", "fuzzers", "exclude", "budget", "slice", "seed", "allocation", "options", "environment", "fuzzer")
FUZZER_KEYS = ("name", "budget", "slice", "options", "environment", "dictionary", "seeds")
"""docs/campaign.md tells of all of them."""

_NAME = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}", re.ASCII)
_LARGEST_SEED = (1 << 32) - 1
_WRONG_LINES = 10  # of one dictionary: who gives a wrong file need not be told of each of its lines
_NOTHING: Mapping[str, str] = MappingProxyType({})
_OF_ONE = "it is of one fuzzer: write it below [[fuzzer]]"
_OF_ALL = "it is of the whole campaign: write it above all [[fuzzer]]"


@dataclass(frozen=True)
class Pattern:
    """A pattern of full names, and what leads to it in the source. It is one that `pipeline.goglob` understands."""

    text: str
    path: KeyPath

    def among(self, names: Iterable[str]) -> set[str]:
        """The names that it asks for."""
        return {name for name in names if goglob.match(self.text, name)}

    def hint(self, names: Collection[str], missing: Mapping[str, str] = _NOTHING) -> str:
        """What may be meant, if it asks for none of the names; `missing` has hints for others."""
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
class Choice:
    """What is said of some fuzzers; None for what is left to others to say."""

    budget: Budget | None = None
    slice: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    dictionary: Path | None = None
    seeds: tuple[Path, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def over(self, other: "Choice") -> "Choice":
        """Both, where this one prevails, key by key, option by option and variable by variable."""
        return Choice(
            budget=self.budget or other.budget,
            slice=self.slice or other.slice,
            options={**other.options, **self.options},
            environment={**other.environment, **self.environment},
            dictionary=self.dictionary or other.dictionary,
            seeds=other.seeds if self.seeds is None else self.seeds,
        )


@dataclass(frozen=True)
class Override:
    """What is said of the fuzzers that a pattern asks for."""

    pattern: Pattern
    choice: Choice


@dataclass(frozen=True)
class Draft:
    """A campaign as it is written. With `problems` it is good for nothing but to find more of them."""

    source: Source
    name: str = ""
    seed: int = 1
    allocation: Allocation = Campaign.allocation
    fuzzers: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    common: Choice = Choice()
    """What holds for all fuzzers; budget and slice are there."""
    overrides: tuple[Override, ...] = ()
    """Of those that ask for the same fuzzer, the later prevails."""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    """What is odd, and does no harm: somebody should be told."""

    def expand(self, names: Collection[str], missing: Mapping[str, str] = _NOTHING) -> Definition:
        """The campaign for a build whose fuzzers have these full names. `missing`: hints for others, by their names.

        Raises SettingsError, with all problems.
        """
        refuse(self.source.name or self.name, self.problems_with(names, missing))
        plans = tuple(self._plan(name) for name in sorted(self._selected(names)))
        return Definition(self.name, self.seed, self.allocation, plans)

    def problems_with(self, names: Collection[str], missing: Mapping[str, str] = _NOTHING) -> tuple[Problem, ...]:
        """All that is wrong with it, for such a build."""
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
        """Patterns that ask for nothing that the build has: most often they are misspelled."""
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


def look(path: Path, defaults: Campaign) -> Draft:
    """Read a campaign's file, whatever is wrong with it."""
    return _draft(Source.file(path), defaults)


def read(path: Path, defaults: Campaign) -> Draft:
    """Read a campaign's file. Raises SettingsError, whose `detail` lists all problems, each with its file and line."""
    draft = look(path, defaults)
    refuse(draft.source.name, draft.problems)
    return draft


def from_parameters(
    defaults: Campaign,
    name: str,
    fuzzers: str,
    *,
    exclude: str = "",
    budget: str = "",
    slice_: str = "",
    seed: int | None = None,
    allocation: str = "",
) -> Draft:
    """A campaign as a task's parameters tell it; empty ones are not given.

    `fuzzers` and `exclude` are patterns with commas or blanks between them. Raises SettingsError, as `read` does.
    """
    given = {"name": name, "budget": budget, "slice": slice_, "allocation": allocation}
    lists = {"fuzzers": _words(fuzzers), "exclude": _words(exclude)}
    content: dict[str, object] = {key: value for key, value in (given | lists).items() if value}
    if seed is not None:
        content["seed"] = seed
    draft = _draft(Source("", content), defaults)
    refuse(name or "it", draft.problems)
    return draft


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _draft(source: Source, defaults: Campaign) -> Draft:
    if source.problems:
        return Draft(source, problems=source.problems)
    notes = Notes()
    table = Table(source, source.content, (), notes)
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


def _name(table: Table) -> str:
    name = table.text("name") or ""
    if name and _NAME.fullmatch(name) is None:
        hint = "use letters, digits, - _ and ., at most 64 of them, and no dot at its beginning: it names a directory"
        table.refuse(f"name = {name!r} cannot be used", hint, "name")
    return name


def _fuzzers(table: Table) -> tuple[Pattern, ...]:
    if table.content.get("fuzzers") == []:
        table.refuse("fuzzers is empty", 'write patterns of names: fuzzers = ["example-fuzzers/*"]', "fuzzers")
    return tuple(_patterns(table, "fuzzers"))


def _patterns(table: Table, key: str) -> Iterator[Pattern]:
    for position, text in table.texts(key):
        yield from _pattern(table, text, key, position)


def _pattern(table: Table, text: str, *keys: str | int) -> Iterator[Pattern]:
    try:
        goglob.compiled(text)
        yield Pattern(text, (*table.path, *keys))
    except UsageError as error:
        table.refuse(error.message, error.hint, *keys)


def _default(table: Table, defaults: Campaign) -> Choice:
    """What luigi.cfg says, as far as it is needed."""
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
    return Choice(Budget(seconds.get("budget")), seconds.get("slice"))


def _choice(table: Table) -> Choice:
    return Choice(_budget(table), table.seconds("slice"), _options(table), environment=_environment(table))


def _budget(table: Table) -> Budget | None:
    if not isinstance(table.content.get("budget"), dict):
        seconds = table.seconds("budget")
        return None if seconds is None else Budget(seconds=seconds)
    inner = cast(Table, table.table("budget"))
    inner.only(("runs",), {})
    inner.require("runs", "100000")
    runs = inner.whole("runs", 1, LARGEST)
    return None if runs is None else Budget(runs=runs)


def _options(table: Table) -> dict[str, str]:
    found: dict[str, str] = {}
    inner = table.table("options")
    for name, value in inner.content.items() if inner else ():
        try:
            found[name] = options.encoded(name, value)
        except options.Misused as error:
            table.refuse(error.message, error.hint, "options", name)
        else:
            if not options.is_known(name):
                table.warn(f"libFuzzer has no option {name}", options.hint_for(name), "options", name)
    return found


def _environment(table: Table) -> dict[str, str]:
    found: dict[str, str] = {}
    inner = table.table("environment")
    for name, value in inner.content.items() if inner else ():
        try:
            found[name] = options.variable(name, value)
        except options.Misused as error:
            table.refuse(error.message, error.hint, "environment", name)
        else:
            if options.lets_go_on(name, found[name]):
                hint = "without halt_on_error=0 the input is kept, and counts as a crash"
                table.warn(f"what is found in spite of {name} is told, and lost", hint, "environment", name)
    return found


def _overrides(table: Table) -> Iterator[Override]:
    for inner in table.tables("fuzzer"):
        inner.only(FUZZER_KEYS, dict.fromkeys(set(KEYS) - set(FUZZER_KEYS), _OF_ALL))
        inner.require("name", '"PACKAGE/NAME", the full name of a fuzzer, or a pattern')
        choice = replace(_choice(inner), dictionary=_dictionary(inner), seeds=_seeds(inner))
        name = inner.text("name")
        yield from (Override(pattern, choice) for pattern in (_pattern(inner, name, "name") if name else ()))


def _dictionary(table: Table) -> Path | None:
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


def _wrong_lines(table: Table, text: str, wrong: list[tuple[int, str, str]]) -> Iterator[Problem]:
    shown = one_line(str(Path(table.source.name).parent / text))
    for line, message, hint in wrong[:_WRONG_LINES]:
        yield Problem(shown, line, "", message, hint)
    if more := wrong[_WRONG_LINES:]:
        message = f"from here on, {len(more):,} more lines are wrong"
        yield Problem(shown, more[0][0], "", message, "is it a dictionary at all?")


def _seeds(table: Table) -> tuple[Path, ...] | None:
    if "seeds" not in table.content:
        return None
    found = []
    for position, text in table.texts("seeds"):
        path = table.source.directory / text
        if problem := _unreadable(path):
            table.refuse(f"the seeds {text} cannot be used: {problem}", _relative(table), "seeds", position)
        found.append(path)
    return tuple(found)


def _relative(table: Table) -> str:
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
