"""Signals by which somebody ends a program: Ctrl-C, kill, a terminal that is closed."""

import signal


class Interrupted(KeyboardInterrupt):
    """One of them. Luigi lets a KeyboardInterrupt end everything; any other exception only ends one task."""

    def explain(self) -> str:
        """For people, without a final newline."""
        return f"interrupted by {self}; what was begun is cleaned up\n  hint: the same command again goes on"


def numbers() -> tuple[signal.Signals, ...]:
    """Those that end this program: not SIGHUP where nohup has told to ignore it."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else []))
