"""A small archive of Debian packages on this machine, and a host's apt that has it as its source."""

import hashlib
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.builds.linux import debs

METAPACKAGE = "linux-image-cloud-amd64"
OTHERS = {METAPACKAGE: (debs.KERNEL_NAME,), "linux-base": (), "kmod": ()}
"""What the packages of the guest depend on and the guest has no use for."""


class Archive:
    """The packages of the guest, and others, in a directory for each release, served by HTTP."""

    def __init__(self, directory: Path, port: int, asked: list[str]) -> None:
        self.directory, self._port, self.asked = directory, port, asked

    def source(self, release: str = "stable") -> str:
        """The line of sources.list for a release."""
        return f"deb [trusted=yes] http://127.0.0.1:{self._port}/{release} ./\n"

    def publish(
        self,
        release: str = "stable",
        *,
        version: str = "1",
        without: Sequence[str] = (),
        depends: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Make the release what it is from now on: what it held before is gone."""
        home = self.directory / release
        shutil.rmtree(home, ignore_errors=True)
        needs = {**debs.DEPENDS, **OTHERS, **(depends or {})}
        for name in {**debs.CONTENTS, **OTHERS}.keys() - set(without):
            debs.write(home, name, debs.CONTENTS.get(name, {}), version=version, depends=needs.get(name, ()))
        (home / "Packages").write_text("\n".join(self._paragraph(path, needs) for path in sorted(home.glob("*.deb"))))
        index = (home / "Packages").read_bytes()
        (home / "Release").write_text(
            f"Codename: {release}\nSuite: {release}\nDate: Sun, 01 Nov 2026 00:00:00 UTC\nSHA256:\n"
            f" {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n"
        )

    def _paragraph(self, path: Path, needs: Mapping[str, tuple[str, ...]]) -> str:
        name, version, _ = path.stem.split("_")
        content = path.read_bytes()
        depends = f"Depends: {', '.join(needs[name])}\n" if needs.get(name) else ""
        return (
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody\n{depends}"
            f"Filename: ./{path.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
            "Description: a test\n"
        )

    def asked_for(self, ending: str) -> list[str]:
        """What has been asked for since the last time, by the end of its name."""
        found = sorted({unquote(path).rpartition("/")[2] for path in self.asked if path.endswith(ending)})
        self.asked.clear()
        return found


@contextmanager
def served(directory: Path) -> Iterator[Archive]:
    """An archive in the directory, while the body runs."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(directory))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            asked.append(self.path)
            del self.headers["If-Modified-Since"]  # a release is published again within the second that it can tell
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    directory.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Archive(directory, server.server_port, asked)
        finally:
            server.shutdown()
            thread.join()


class HostApt:
    """The host's apt, as far as the environment can say: its sources, its pins, what is installed."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        directory.mkdir()
        monkeypatch.setenv("APT_CONFIG", str(directory / "apt.conf"))
        self.configure("")
        self.installed({})

    def configure(self, more: str) -> None:
        (self.directory / "apt.conf").write_text(
            f'Dir::Etc::SourceList "{self.directory}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
            f'Dir::Etc::Preferences "{self.directory}/preferences";\nDir::State::Status "{self.directory}/status";\n'
            f'Acquire::http::Proxy "DIRECT";\n{more}\n'
        )

    def sources(self, *lines: str) -> None:
        (self.directory / "sources.list").write_text("".join(lines))

    def pin(self, text: str) -> None:
        (self.directory / "preferences").write_text(text)

    def installed(self, versions: Mapping[str, str]) -> None:
        (self.directory / "status").write_text(
            "\n".join(
                f"Package: {name}\nStatus: install ok installed\nVersion: {version}\nArchitecture: amd64\n"
                "Maintainer: nobody\nDescription: a test\n"
                for name, version in versions.items()
            )
        )
