"""SSH to a guest: connections, commands in it, and files into it and out of it."""

from pipeline.ssh.command import Command
from pipeline.ssh.connection import Connection, connect, private_key, quote
from pipeline.ssh.connector import Connector, Retries
from pipeline.ssh.landing import Limits
from pipeline.ssh.session import CHUNK

__all__ = ["CHUNK", "Command", "Connection", "Connector", "Limits", "Retries", "connect", "private_key", "quote"]
