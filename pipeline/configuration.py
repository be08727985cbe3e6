"""The configuration files that luigi reads, merged: the text of each setting and the file that it comes from.

The files are /etc/luigi/luigi.cfg, ./luigi.cfg and the one named by LUIGI_CONFIG_PATH; later ones win. A path in a file
is relative to that file; `~` and `$NAME` are expanded. Unknown names in known sections are errors, and so are sections
whose names are almost those of known ones: a typing mistake must not silently mean "default". As settings name programs
that are run, a file that is merely found must be one that only its reader or root can have written; a file that
LUIGI_CONFIG_PATH names is the user's own choice.
"""

import configparser
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pipeline.errors import SettingsError, UsageError
from pipeline.host.trust import distrust
from pipeline.text.quantity import parse_duration, parse_size

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


_NEAR = 0.8
"""difflib's ratio above which a section counts as mistyped: [bot] and [biuld] do; luigi's [root] and [core] do not."""

_LISTS = ("arguments",)
"""Settings that may be empty, which means an empty list."""


def _require_trust(path: Path) -> None:
    """Raise SettingsError unless only this user or root can have written the file."""
    if why := distrust(path.stat(), root=True):
        raise SettingsError(
            f"{path} is not followed: {why}, and settings name programs that are run",
            hint=f"if all in it is as you want it: chown or chmod it, or say LUIGI_CONFIG_PATH={path}",
        )


class Configuration:
    """The merged files, with readers for each type of value.

    Every reader takes a section and a key, and raises SettingsError for a value that it cannot use.
    """

    def __init__(self, known: Mapping[str, tuple[str, ...]], environ: Mapping[str, str], directory: Path) -> None:
        """Read the files that hold in `directory`. Raises SettingsError.

        `known` maps each section that is looked at to the names of its settings.
        """
        self._known = known
        self.environ = environ
        self.values: dict[tuple[str, str], tuple[str, Path]] = {}
        for path in self._files(directory):
            self._read(path)

    def _files(self, directory: Path) -> list[Path]:
        places = (Path("/etc/luigi"), directory)
        found = [path for place in places if (path := place / "luigi.cfg").is_file()]
        chosen = []
        if named := self.environ.get("LUIGI_CONFIG_PATH"):
            path = directory / named
            if not path.is_file():
                raise SettingsError(f"LUIGI_CONFIG_PATH names {named}, which is no file", hint="correct it or unset it")
            chosen.append(path)
        old = [path for place in places if (path := place / "client.cfg").is_file()]  # luigi reads these too
        for path in (*found, *old):
            if not any(map(path.samefile, chosen)):
                _require_trust(path)
        return found + chosen

    def _read(self, path: Path) -> None:
        # [DEFAULT] is luigi's business: here it is a section like any other
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        try:
            parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
        except (configparser.Error, UnicodeDecodeError, OSError) as error:
            raise SettingsError(f"{path} cannot be read: {error}", hint="correct that file") from error
        for section in parser.sections():
            if section not in self._known:
                self._check_section(path, section)
            else:
                for key, value in parser.items(section):
                    self._check_key(path, section, key)
                    self.values[section, key] = (value.strip(), path)
                    if not value.strip() and key not in _LISTS:
                        self._refuse(section, key, "give it a value, or leave it out, which means the default")

    def _check_section(self, path: Path, section: str) -> None:
        """Raise SettingsError for a section that looks like a mistyped one of ours; others belong to luigi or tasks."""
        import difflib

        near = difflib.get_close_matches(section, self._known, n=1, cutoff=_NEAR)
        if near:
            hint = f"did you mean [{near[0]}]? if not, it needs a name that is less like it"
            raise SettingsError(f"{path}: there is no section [{section}]", hint=hint)

    def _check_key(self, path: Path, section: str, key: str) -> None:
        if key not in self._known[section]:
            import difflib

            near = difflib.get_close_matches(key, self._known[section], n=1)
            known = ", ".join(self._known[section])
            hint = f"did you mean {near[0]}?" if near else f"[{section}] knows: {known}"
            raise SettingsError(f"{path}: [{section}] has no setting named {key}", hint=hint)

    def text(self, section: str, key: str) -> str | None:
        """The text of a setting as it stands in the file; None if it is not set."""
        value = self.values.get((section, key))
        return value[0] if value else None

    def choice(self, section: str, key: str, allowed: tuple[str, ...]) -> str:
        """One of the `allowed` values; the first of them if the setting is not set."""
        value = self.text(section, key)
        if value is None:
            return allowed[0]
        if value not in allowed:
            self._refuse(section, key, f"use one of: {', '.join(allowed)}")
        return value

    def number(self, section: str, key: str, *, least: float = 0.0) -> float | None:
        """A finite number greater than `least`; None if the setting is not set."""
        text = self.text(section, key)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least < value < float("inf"):
            self._refuse(section, key, f"give a number greater than {least:g}")
        return value

    def fraction(self, section: str, key: str) -> float | None:
        """A number of at least 0 and less than 1; None if the setting is not set."""
        value = self.number(section, key, least=-1.0)
        if value is not None and not 0 <= value < 1:
            self._refuse(section, key, "give a number of at least 0 and less than 1, such as 0.02")
        return value

    def whole(self, section: str, key: str) -> int | None:
        """A whole number greater than 0; None if the setting is not set."""
        value = self.number(section, key)
        if value is not None and value != int(value):
            self._refuse(section, key, "give a whole number")
        return None if value is None else int(value)

    def count(self, section: str, key: str) -> int | None:
        """A whole number that may be 0; None if the setting is not set."""
        return 0 if self.text(section, key) == "0" else self.whole(section, key)

    def size(self, section: str, key: str) -> int | None:
        """A size in bytes; None if the setting is not set."""
        text = self.text(section, key)
        try:
            return parse_size(text) if text else None
        except UsageError as error:
            self._refuse(section, key, error.hint)
            raise

    def duration(self, section: str, key: str) -> float | None:
        """A duration in seconds; None if the setting is not set."""
        text = self.text(section, key)
        try:
            return parse_duration(text) if text else None
        except UsageError as error:
            self._refuse(section, key, error.hint)
            raise

    def switch(self, section: str, key: str, default: str = "on") -> bool:
        """Whether the setting is on; `default` is the text that counts if it is not set."""
        words = {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False}
        value = (self.text(section, key) or default).lower()
        if value not in words:
            self._refuse(section, key, "use on or off")
        return words[value]

    def words(self, section: str, key: str) -> tuple[str, ...]:
        """The words of a command line, split as a shell would; () if the setting is not set."""
        try:
            return tuple(shlex.split(self.text(section, key) or ""))
        except ValueError as error:
            self._refuse(section, key, f"correct its quotes ({error})")
            raise

    def path(self, section: str, key: str) -> Path | None:
        """A path, made absolute from the directory of its file; None if the setting is not set."""
        text = self.text(section, key)
        return None if text is None else self.values[section, key][1].parent.absolute() / self._expand(section, key)

    def _expand(self, section: str, key: str) -> str:
        try:
            expanded = _VARIABLE.sub(self._variable, self.values[section, key][0])
            if not expanded:
                self._refuse(section, key, "its variables are all empty; give it a value, or leave it out")
            return str(Path(expanded).expanduser())
        except (KeyError, RuntimeError) as error:
            self._refuse(section, key, f"there is no such variable or user: {error}")
            raise

    def _variable(self, match: re.Match[str]) -> str:
        return self.environ[match[1] or match[2]]

    def _refuse(self, section: str, key: str, hint: str) -> None:
        value, path = self.values[section, key]
        raise SettingsError(f"{path}: [{section}] {key} = {value} cannot be used", hint=hint)


Bytes = Annotated[int, Configuration.size]
"""The type of a setting that is a number of bytes, written with K, M or G, or without."""

Count = Annotated[int, Configuration.count]
"""The type of a setting that is a whole number, and may be 0."""

Seconds = Annotated[float, Configuration.duration]
"""The type of a setting that is a time, written with s, m, h or d, or in seconds."""

Share = Annotated[float, Configuration.fraction]
"""The type of a setting that is a number of at least 0 and less than 1."""
