"""Commands about the host: whether it can run guests, and what killed runs have left on it."""

import argparse

from pipeline.settings import Settings


def doctor(chosen: Settings, options: argparse.Namespace) -> int:
    raise NotImplementedError


def gc(chosen: Settings, options: argparse.Namespace) -> int:
    raise NotImplementedError
