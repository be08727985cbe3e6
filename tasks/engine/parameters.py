"""Parameters that refuse a wrong value at once, in Topcoat's own words and with exit code 2."""

from typing import Any

import luigi

from pipeline.errors import UsageError
from pipeline.text.quantity import parse_size
from pipeline.vm.instance import check_name


class InstanceName(luigi.Parameter):
    """A parameter whose value is the name of an instance."""

    def normalize(self, x: str) -> str:
        """Return the name. Raises UsageError if no instance can have it."""
        return check_name(x)


class Size(luigi.Parameter):
    """A parameter whose value is a size: bytes, or a number with K, M or G; it is kept as it was written."""

    def normalize(self, x: str) -> str:
        """Return the text unchanged. Raises UsageError if it is no size."""
        parse_size(x)
        return x


class Choice(luigi.Parameter):
    """A parameter whose value is one of a few words, or empty, which stands for what the settings say."""

    def __init__(self, *, choices: tuple[str, ...], **options: Any) -> None:
        super().__init__(**options)
        self.choices = choices

    def normalize(self, x: str) -> str:
        """Return the word. Raises UsageError if it is neither empty nor one of the choices."""
        if x and x not in self.choices:
            raise UsageError(f"{x!r} is no choice", hint=f"use one of: {', '.join(self.choices)}")
        return x
