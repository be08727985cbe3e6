"""The arguments of a fuzzer, as libFuzzer has them: options `-NAME=VALUE`, and the rest."""

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import BadArguments

_OPTION = re.compile(r"-([^-=\s]+)=(.*)", re.ASCII)
_PREFIX = "artifact_prefix"
MUTABLE = "tmp/"
"""Where a fuzzer may write, as it sees it itself. Callers say data/, and mean the same."""


@dataclass(frozen=True)
class Arguments:
    """Options in the order in which they were first given, of each the last value; and all other words.

    Words that are no option by the letter, such as `-bad` or `--x`, are among the others.
    """

    options: Mapping[str, str]
    others: tuple[str, ...] = ()

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Arguments":
        """Tell options from other words."""
        matches = [(word, _OPTION.fullmatch(word)) for word in words]
        options = {match[1]: match[2] for _, match in matches if match}
        return cls(options, tuple(word for word, match in matches if not match))

    @property
    def words(self) -> list[str]:
        """As libFuzzer takes them, options first."""
        return [*(f"-{name}={value}" for name, value in self.options.items()), *self.others]

    @property
    def artifact_prefix(self) -> str:
        """What the name of each artifact begins with, its directory included."""
        return self.options.get(_PREFIX, "")

    @property
    def artifact_directory(self) -> str:
        """The directory part of the prefix, without a slash at its end."""
        return posixpath.dirname(self.artifact_prefix)

    def in_guest(self) -> "Arguments":
        """What a fuzzer that runs in the guest is given: data/ is tmp/, and artifacts are written there.

        Raises BadArguments if artifacts would be written elsewhere.
        """
        options = {name: mutable(value) for name, value in self.options.items()}
        prefix = options.setdefault(_PREFIX, MUTABLE)
        if not prefix.startswith(MUTABLE):
            raise BadArguments(
                f'artifact_prefix not in mutable namespace: "{prefix}"', hint="let it begin with data/ or leave it out"
            )
        return replace(self, options=options, others=tuple(map(mutable, self.others)))


def mutable(path: str) -> str:
    """The path by which the fuzzer knows what callers call data/…"""
    return MUTABLE + path.removeprefix("data/") if path.startswith("data/") else path
