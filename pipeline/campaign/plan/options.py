"""The options of libFuzzer and the variables of a fuzzer's environment, as a campaign's file sets them."""

import re

from pipeline.fuzz import sanitizers
from pipeline.fuzz.flags import INT, NUMBERS, REFUSED, TEXTS
from pipeline.text import sanitizer_options
from pipeline.text.printable import is_plain

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


class Misused(ValueError):
    """An option or variable cannot be set in this way: what is wrong, and what to do instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def encoded(name: str, value: object) -> str:
    """The value of an option in the form that libFuzzer takes; True becomes 1. Raises Misused."""
    if _NAME.fullmatch(name) is None:
        raise Misused(f"{name!r} is no name of an option", "write it as libFuzzer does, without dashes: max_len = 4096")
    if name in REFUSED:
        raise Misused(f"the option {name} cannot be set", REFUSED[name])
    if isinstance(value, bool):
        value = int(value)
    if name in NUMBERS and not (isinstance(value, int) and value in INT):
        raise Misused(f"the option {name} takes a whole number", f"write it without quotes and point: {name} = 1")
    if name in TEXTS and not isinstance(value, str):
        raise Misused(f"the option {name} takes text", f'write it in quotes: {name} = "…"')
    if not isinstance(value, int | float | str) or (isinstance(value, int) and value not in INT):
        raise Misused(f"the option {name} cannot have this value", "write a number, a text, or true or false")
    if isinstance(value, str) and not is_plain(value):
        raise Misused(f"the option {name} has control characters", "leave them out")
    return str(value)


def variable(name: str, value: object) -> str:
    """The value of an environment variable as text; a number is written out. Raises Misused."""
    if _NAME.fullmatch(name) is None:
        raise Misused(f"{name!r} is no name of a variable", 'write it as a shell does: UBSAN_OPTIONS = "…"')
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and value not in INT):
        raise Misused(f"the variable {name} cannot have this value", f'write it in quotes: {name} = "…"')
    if isinstance(value, str) and not is_plain(value):
        raise Misused(f"the variable {name} has control characters", "leave them out")
    if sanitizers.reads(name) and "log_path" in sanitizer_options.parse(str(value)).values:
        raise Misused(f"log_path cannot be set in {name}", "Topcoat reads reports from the output of the fuzzer")
    return str(value)
