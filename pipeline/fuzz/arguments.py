"""The arguments of a fuzzer, as libFuzzer takes them: options `-NAME=VALUE`, and other words."""

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import BadArguments

_OPTION = re.compile(r"-([^-=\s]+)=(.*)", re.ASCII)
_PREFIX = "artifact_prefix"
MUTABLE = "tmp/"
"""The directory to which a fuzzer may write, as the fuzzer itself names it. Callers say data/ and mean the same."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of a fuzzer: options, with the value that was given last, and all other words.

    Options are in the order in which they were first given. Words that are not exactly of the form of an option, such
    as `-bad` or `--x`, are among the others.
    """

    options: Mapping[str, str]
    others: tuple[str, ...] = ()

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Arguments":
        """Divide words into options and others."""
        matches = [(word, _OPTION.fullmatch(word)) for word in words]
        options = {match[1]: match[2] for _, match in matches if match}
        return cls(options, tuple(word for word, match in matches if not match))

    @property
    def words(self) -> list[str]:
        """All arguments as libFuzzer takes them, options first."""
        return [*(f"-{name}={value}" for name, value in self.options.items()), *self.others]

    @property
    def artifact_prefix(self) -> str:
        """The prefix of each artifact's path, directory included; empty if none is given."""
        return self.options.get(_PREFIX, "")

    @property
    def artifact_directory(self) -> str:
        """The directory part of the prefix, without a slash at its end."""
        return posixpath.dirname(self.artifact_prefix)

    def in_guest(self) -> "Arguments":
        """Translate the arguments for the fuzzer in its guest: data/ becomes tmp/, and artifacts are written there.

        Raises BadArguments if they ask for artifacts elsewhere.
        """
        options = {name: mutable(value) for name, value in self.options.items()}
        prefix = options.setdefault(_PREFIX, MUTABLE)
        if not prefix.startswith(MUTABLE):
            raise BadArguments(
                f'artifact_prefix not in mutable namespace: "{prefix}"', hint="let it begin with data/ or leave it out"
            )
        return replace(self, options=options, others=tuple(map(mutable, self.others)))


def mutable(path: str) -> str:
    """Translate a path that callers begin with data/ into the fuzzer's own, which begins with tmp/."""
    return MUTABLE + path.removeprefix("data/") if path.startswith("data/") else path
