"""Running one fuzzer in a guest: `Fuzzer` is the way in, `Connector` what it asks of the connection."""

from pipeline.fuzzer.connector import Command, Connector
from pipeline.fuzzer.fuzzer import Fuzzer

__all__ = ["Command", "Connector", "Fuzzer"]
