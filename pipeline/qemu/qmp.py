"""The few questions that Topcoat asks QEMU's monitor, each on a connection of its own and with a limit."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

logging.getLogger("qemu").addHandler(logging.NullHandler())  # the library logs tracebacks of what it also raises

T = TypeVar("T")

_FORWARD = re.compile(r"HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s")


class MonitorError(Exception):
    """QEMU's monitor did not answer, or not as expected. Whoever asks knows what that means."""


def ssh_port(socket: Path, limit: float) -> int:
    """The host port that QEMU chose for the forward to the guest's port 22. Raises MonitorError."""

    async def ask(client: "QMPClient") -> int:
        text = await client.execute("human-monitor-command", {"command-line": "info usernet"})
        match = _FORWARD.search(str(text))
        if match is None:
            raise MonitorError(f"QEMU forwards no port: {text}")
        return int(match[1])

    return _asked(socket, limit, ask)


def quit_qemu(socket: Path, limit: float) -> None:
    """Ask QEMU to end itself. Raises MonitorError if it does not take the request."""

    async def ask(client: "QMPClient") -> None:
        from qemu.qmp import ExecInterruptedError

        with suppress(ExecInterruptedError):  # it may be gone before it has answered
            await client.execute("quit")

    _asked(socket, limit, ask)


def _asked(socket: Path, limit: float, ask: Callable[["QMPClient"], Awaitable[T]]) -> T:
    from qemu.qmp import QMPClient, QMPError  # 0.08 s to import

    async def talk() -> T:
        # When QEMU ends in the midst of connecting, the library leaves a failed task behind; what failed is raised too
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        client = QMPClient("topcoat")
        async with asyncio.timeout(limit):
            await _connected(client, socket)
            try:
                return await ask(client)
            finally:
                with suppress(QMPError, EOFError, OSError):
                    await client.disconnect()

    try:
        return asyncio.run(talk())
    except TimeoutError as error:
        raise MonitorError(f"no answer within {limit:g} s") from error
    except (QMPError, OSError, EOFError, AssertionError) as error:
        # AssertionError is the library's answer to a peer that ends in the midst of connecting
        raise MonitorError(str(error) or type(error).__name__) from error


async def _connected(client: "QMPClient", socket: Path) -> None:
    from qemu.qmp import ConnectError

    while True:
        try:
            await client.connect(str(socket))
        except ConnectError as error:
            if not isinstance(error.exc, ConnectionRefusedError):
                raise
            await asyncio.sleep(0.01)  # between QEMU's bind and its listen
        else:
            return
