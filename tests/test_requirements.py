"""What `make setup` installs is what was tested: each file of each package has a digest, and nothing is missing."""

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PROJECT_FILE = tomllib.loads((PROJECT / "pyproject.toml").read_text())
_ENTRY = re.compile(r"([\w.-]+)==([\w.]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


OF_VENV = ("pip", "setuptools")
"""What comes with Python's virtual environments."""


def normal(name: str) -> str:
    """A package's name, as the index of Python's packages compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    text = re.sub(r"^#.*\n", "", (PROJECT / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert _ENTRY.sub("", text) == "", "each has a version and digests"
    return {normal(name): version for name, version, _ in _ENTRY.findall(text)}


def test_all_that_is_needed_is_pinned() -> None:
    project = PROJECT_FILE["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *PROJECT_FILE["build-system"]["requires"],
    ]
    names = [re.match(r"[\w.-]+", one) for one in wanted]
    assert len(names) > 10
    assert {normal(name[0]) for name in names if name} <= pinned().keys()


def test_topcoat_is_built_with_what_is_pinned() -> None:
    assert PROJECT_FILE["build-system"]["requires"] == [f"hatchling=={pinned()['hatchling']}"]


def test_what_is_installed_here_is_pinned() -> None:
    """A package that another one has begun to need would be installed without a digest, or not at all."""
    there = {normal(one.name): one.version for one in distributions()}
    differ = {name: (version, there.get(name)) for name, version in pinned().items() if there.get(name) != version}
    assert differ == {}
    assert there.keys() - pinned().keys() <= {"topcoat", *OF_VENV}
