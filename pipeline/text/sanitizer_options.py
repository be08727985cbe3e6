"""The text of ASAN_OPTIONS and of its like: options NAME=VALUE, as the runtimes of sanitizers read and take them.

The rules are those of compiler-rt/lib/sanitizer_common/sanitizer_flag_parser.cpp in llvm-project, at commit
477390006f5f.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SEPARATORS = " ,:\n\t\r"
_SETTING = re.compile(
    rf"[{_SEPARATORS}]*(?P<name>[^={_SEPARATORS}]*)="
    rf"(?:'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<plain>(?!['\"])[^{_SEPARATORS}]*))"
)
_QUOTED = re.compile(rf"['\"]|.*[{_SEPARATORS}]", re.DOTALL)


@dataclass(frozen=True)
class SanitizerOptions:
    """What such a text says."""

    values: Mapping[str, str]
    """The value of each option, without quotes. Of what is set twice, sanitizers take the last."""
    rest: str = ""
    """The text from where a sanitizer no longer understands it, and ends the program; empty if it understands all.

    There an equals sign is missing, or the second one of two quotes.
    """


def parse(text: str) -> SanitizerOptions:
    """Read a text. Nothing is an error: see SanitizerOptions.rest."""
    values: dict[str, str] = {}
    at = 0
    while setting := _SETTING.match(text, at):
        forms = setting.group("single", "double", "plain")
        values[setting["name"]] = next(value for value in forms if value is not None)
        at = setting.end()
    return SanitizerOptions(values, text[at:].lstrip(_SEPARATORS))


def joined(values: Mapping[str, str]) -> str:
    """Write options as `NAME=VALUE:NAME=VALUE`, sorted, with quotes where a value needs them; `parse` reads the same.

    No value may need quotes and have both kinds of them in it: see `can_be_written`.
    """
    return ":".join(f"{name}={_written(value)}" for name, value in sorted(values.items()))


def can_be_written(value: str) -> bool:
    """Whether a sanitizer can be given this value at all."""
    return _QUOTED.match(value) is None or "'" not in value or '"' not in value


def _written(value: str) -> str:
    if _QUOTED.match(value) is None:
        return value
    quote = '"' if "'" in value else "'"
    return f"{quote}{value}{quote}"
