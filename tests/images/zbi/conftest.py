"""The command, run in a directory of its own."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.images import zbi
from tests.images.zbi import device


@dataclass(frozen=True)
class Desk:
    """A directory with the inputs of a command, in which it runs."""

    path: Path
    capsys: pytest.CaptureFixture[str]

    def put(self, name: str, data: bytes) -> Path:
        """Make a file."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def run(self, *words: str) -> tuple[int, str, str]:
        """The exit code, and what came out."""
        code = zbi.main(words)
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def make(self, *words: str) -> bytes:
        """`zbi -o OUT ...`, which must succeed. Returns the image."""
        assert self.run("-o", "OUT", *words) == (0, "", "")
        return (self.path / "OUT").read_bytes()

    def files(self, *words: str) -> dict[str, bytes]:
        """The files of the image that `make` makes."""
        return device.files(self.make(*words))

    def refusal(self, *words: str) -> str:
        """What the command says when it fails, which changes nothing in the directory."""
        before = self.tree()
        code, out, err = self.run(*words)
        assert (code, out) == (1, "")
        assert err.startswith("zbi: ")
        assert "\n  hint: " in err
        assert self.tree() == before
        return err

    def tree(self) -> dict[str, bytes]:
        """All regular files below the directory."""
        found = (path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink())
        return {str(path.relative_to(self.path)): path.read_bytes() for path in found}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, capsys)
