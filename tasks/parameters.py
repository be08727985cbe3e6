"""Parameters that refuse a wrong value at once, in Topcoat's own words and with exit code 2."""

from typing import Any

import luigi

from pipeline.errors import UsageError
from pipeline.instance import check_name
from pipeline.size import parse_size


class InstanceName(luigi.Parameter):
    """The name of an instance."""

    def normalize(self, x: str) -> str:
        """The name. Raises UsageError if it cannot be one."""
        return check_name(x)


class Size(luigi.Parameter):
    """Bytes, or a number with K, M or G; kept as it was written."""

    def normalize(self, x: str) -> str:
        """The text. Raises UsageError if it is no size."""
        parse_size(x)
        return x


class Choice(luigi.Parameter):
    """One of a few words. An empty default means: as the settings say."""

    def __init__(self, *, choices: tuple[str, ...], **options: Any) -> None:
        super().__init__(**options)
        self.choices = choices

    def normalize(self, x: str) -> str:
        """The word. Raises UsageError if it is none of them."""
        if x and x not in self.choices:
            raise UsageError(f"{x!r} is no choice", hint=f"use one of: {', '.join(self.choices)}")
        return x
