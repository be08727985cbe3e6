"""ELF files: what programs and libraries say of themselves, without running them.

It is their machine, their loader and libraries, their sanitizers, the fuzzing engine in them. Files are read that came
from elsewhere, so nothing that they say is believed unchecked, and all that is read is bounded.
"""

from pipeline.builds.elf.facts import ElfFacts, read
from pipeline.builds.elf.structure import MAGIC, DamagedElfError, release

__all__ = ["MAGIC", "DamagedElfError", "ElfFacts", "read", "release"]
