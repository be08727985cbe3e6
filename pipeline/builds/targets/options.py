"""NAME.options, the file beside a target that says with which flags and variables it is to be run.

The format is what ClusterFuzz reads with Python's configparser, in src/clusterfuzz/_internal/bot/fuzzers/options.py at
commit 775849763295. There a file with an error counts for nothing; here all that is sound in it counts, and the rest is
told with its line.
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath

from pipeline.text import sanitizer_options
from pipeline.text.printable import is_plain, one_line
from pipeline.text.spelling import nearest

LARGEST = 64 << 10
"""The bytes that an options file may have. A larger one is not read at all."""

MOST_PROBLEMS = 20
"""How many problems are told, before it is only told how many more there are."""

FLAGS, ENVIRONMENT = "libfuzzer", "env"
"""The sections with libFuzzer's flags, and with variables of the environment."""

SANITIZERS: Mapping[str, str] = {
    name: f"{name.upper()}_OPTIONS" for name in ("asan", "hwasan", "lsan", "msan", "tsan", "ubsan")
}
"""The sections with options of sanitizers, and the variable that each of them reads."""

_OTHERS = frozenset(("AFL", "afl", "centipede", "grammar", "honggfuzz"))
"""Sections that mean something to ClusterFuzz, but for other engines."""

_SECTIONS = (FLAGS, *SANITIZERS, ENVIRONMENT)

_SHOWN = 80  # characters of what is passed over
_COMMENT = ("#", ";")
_SECTION = re.compile(r"\[(.+)\]")
_SETTING = re.compile(r"([^=:\n]+)[=:][^\S\n]*(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_PERCENT = re.compile(r"%(.?)", re.DOTALL)
_QUOTED = re.compile(r"(['\"])(.*)\1", re.DOTALL)
_RANDOM = re.compile(r"\s*random\(\s*(\d{1,18})\s*,\s*(\d{1,18})\s*\)\s*", re.ASCII)


@dataclass(frozen=True)
class TargetOptions:
    """What the options file of a target says. Without such a file, it is one of which every field is empty."""

    flags: Mapping[str, str] = field(default_factory=dict)
    """libFuzzer's flags as they are written, in small letters, without `dict`; `evaluated` gives their values."""
    dictionary: str | None = None
    """The target's dictionary, the value of `dict`: a path relative to the options file; None if none is named."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment: all of the section `env`, as they are written, and ASAN_OPTIONS and its like.

    ClusterFuzz takes only two of that section, and in capital letters.
    """
    problems: tuple[str, ...] = ()
    """One sentence for each thing that was passed over, and why, with the line where it is known. Fit to print."""


def read(path: Path) -> TargetOptions:
    """Read an options file, as `parse` does. That it cannot be read is one of the problems, too."""
    try:
        with path.open("rb") as stream:
            return parse(stream.read(LARGEST + 1))
    except OSError as error:
        return TargetOptions(problems=(f"it cannot be read: {error.strerror}",))


def parse(content: bytes) -> TargetOptions:
    """Read an options file, which may contain anything: nothing raises."""
    if len(content) > LARGEST:
        return TargetOptions(problems=(f"it has {len(content)} bytes, more than {LARGEST}, and was not read",))
    problems = _Problems()
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    lines: dict[tuple[str, str], int] = {}
    for setting in _settings(content, problems):
        try:
            name, value = _sound(setting)
        except _Unsound as error:
            problems.tell(setting.line, f"{_shown(setting.name)} is passed over: {error}")
            continue
        if before := lines.get((setting.section, name)):
            problems.tell(setting.line, f"{name} was set in line {before} already: the last value counts")
        lines[setting.section, name] = setting.line
        found[setting.section][name] = value
    flags = found[FLAGS]
    return TargetOptions(flags, flags.pop("dict", None), _environment(found), problems.told())


def evaluated(value: str, seed: int) -> str:
    """The value of a flag: for `random(LOWEST, HIGHEST)` one of these numbers, the same for the same seed.

    Anything else is returned as it is.
    """
    ends = random_range(value)
    if ends is None:
        return value
    lowest, highest = ends
    digest = sha256(f"{seed}/{lowest}/{highest}".encode()).digest()
    return str(lowest + int.from_bytes(digest) % (highest - lowest + 1))


def random_range(value: str) -> tuple[int, int] | None:
    """The lowest and the highest number of `random(LOWEST, HIGHEST)`; None if the value is anything else."""
    match = _RANDOM.fullmatch(value)
    if match is None:
        return None
    lowest, highest = map(int, match.groups())
    return (lowest, highest) if lowest <= highest else None


class _Unsound(ValueError):
    """A setting cannot be used: the text says why."""


@dataclass(frozen=True)
class _Setting:
    """A setting as it is written, and where."""

    line: int
    section: str
    name: str
    value: str


class _Problems:
    """The problems of a file, of which only so many are kept: a file that is no text at all may have thousands."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._more = 0

    def tell(self, line: int, problem: str) -> None:
        if len(self._told) < MOST_PROBLEMS:
            self._told.append(f"line {line}: {problem}")
        else:
            self._more += 1

    def told(self) -> tuple[str, ...]:
        return (*self._told, *([f"{self._more} more problems are not told"] if self._more else []))


def _settings(content: bytes, problems: _Problems) -> Iterator[_Setting]:
    """Yield what the sections say that mean something here."""
    section, begun = "", dict[str, int]()
    for line, text in _logical_lines(content):
        if header := _SECTION.match(text):
            section = header[1]
            if problem := _section_problem(section, begun):
                problems.tell(line, problem)
            begun.setdefault(section, line)
        elif not begun:
            problems.tell(line, "what stands above the first section is passed over")
            begun[""] = line
        elif section not in _SECTIONS:
            pass  # told already, or for another engine
        elif setting := _SETTING.fullmatch(text):
            yield _Setting(line, section, setting[1].strip(), setting[2])
        else:
            problems.tell(line, f"{_shown(text)} is passed over: it is not of the form NAME = VALUE")


def _logical_lines(content: bytes) -> Iterator[tuple[int, str]]:
    """Yield the lines of the file with their numbers, without blank ones and comments.

    A line that is indented more than a setting above belongs to its value. Bytes that are not UTF-8 become surrogates,
    which is_plain refuses.
    """
    text = content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
    begun, depth, parts = 0, 0, list[str]()
    for number, line in enumerate(re.split(r"\r\n?|\n", text), 1):
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if not stripped or stripped.startswith(_COMMENT):
            continue
        if parts and indent > depth and not _SECTION.match(parts[0]):
            parts.append(stripped)
            continue
        if parts:
            yield begun, "\n".join(parts)
        begun, depth, parts = number, indent, [stripped]
    if parts:
        yield begun, "\n".join(parts)


def _section_problem(section: str, begun: Mapping[str, int]) -> str:
    """What is wrong with a section that begins; empty if nothing is."""
    if section in _OTHERS:
        return ""
    if section not in _SECTIONS:
        if section in begun:
            return ""
        near = nearest(section.strip().lower()[:_SHOWN], _SECTIONS)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(_SECTIONS)}"
        return f"the section {_shown(section)} is passed over: {meant}"
    if section in begun:
        return f"the section {section} began in line {begun[section]} already: both count"
    return ""


def _sound(setting: _Setting) -> tuple[str, str]:
    """The name and the value of a setting, as they count. Raises _Unsound."""
    if _NAME.fullmatch(setting.name) is None:
        raise _Unsound("it is no name")
    if "\n" in setting.value:
        raise _Unsound("what is indented more below it counts to its value, which no option takes")
    if not is_plain(setting.value):
        raise _Unsound("its value has control characters")
    value = _PERCENT.sub(_percent, setting.value)
    if setting.section == ENVIRONMENT:
        if setting.name in SANITIZERS.values() and sanitizer_options.parse(value).rest:
            raise _Unsound("no sanitizer understands its value")
        return setting.name, value
    name = setting.name.lower()
    if setting.section in SANITIZERS:
        return name, _for_sanitizers(value)
    return name, _inside(value) if name == "dict" else value


def _percent(match: re.Match[str]) -> str:
    if match[1] != "%":
        raise _Unsound("a percent sign is written twice: %%")
    return "%"


def _for_sanitizers(value: str) -> str:
    """The value of a sanitizer's option, which may be written in quotes."""
    quoted = _QUOTED.fullmatch(value)
    value = quoted[2] if quoted else value
    if not value:
        raise _Unsound("it has no value")
    if not sanitizer_options.can_be_written(value):
        raise _Unsound("its value has both kinds of quotes, and no sanitizer understands that")
    return value


def _inside(path: str) -> str:
    """The path of a dictionary, which must be in the directory of the options file or below it."""
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise _Unsound("it must name a file beside the options file, or below")
    return path


def _environment(found: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The variables: for a sanitizer, its section counts where the section env says something else of an option."""
    made = dict(found[ENVIRONMENT])
    for section, variable in SANITIZERS.items():
        if own := found[section]:
            made[variable] = sanitizer_options.joined({**sanitizer_options.parse(made.get(variable, "")).values, **own})
    return dict(sorted(made.items()))


def _shown(text: str) -> str:
    return one_line(text, _SHOWN)
