"""Modules and files that the sources name exist: a name in a docstring does not move with what it names."""

import re
from importlib import import_module
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
SOURCES = [path for room in ("pipeline", "tasks", "bench") for path in sorted((PROJECT / room).rglob("*.py"))]
_MODULE = re.compile(r"\bpipeline(?:\.[A-Za-z_][A-Za-z0-9_]*)+")
_FILE = re.compile(r"(?<![\w/])(?:pipeline|tasks|tests|bench|docs)/[\w./-]+\.(?:py|md|cfg|S|json|toml)\b")


def test_the_sources_name_many() -> None:
    assert sum(len(_MODULE.findall(path.read_text())) for path in SOURCES) > 500


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_what_is_named_exists(path: Path) -> None:
    text = path.read_text()
    assert [name for name in _FILE.findall(text) if not (PROJECT / name).exists()] == []
    assert [name for name in {*_MODULE.findall(text)} if not name.endswith("._") and not _exists(name)] == []


def test_a_class_has_a_name_of_its_own() -> None:
    """Else a reader who looks for one finds another."""
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        if not path.is_relative_to(PROJECT / "bench"):
            for name in re.findall(r"^ *class (\w+)", path.read_text(), re.MULTILINE):
                places.setdefault(name, []).append(str(path.relative_to(PROJECT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def _exists(name: str) -> bool:
    first, *others = name.split(".")
    found: object = import_module(first)
    so_far = first
    for part in others:
        so_far = f"{so_far}.{part}"
        try:
            found = getattr(found, part) if hasattr(found, part) else import_module(so_far)
        except ImportError:
            return False
    return True
