"""The host: processes, programs, deadlines, locks, and what the host has to spare.

All that asks the operating system something that has nothing to do with fuzzing or Fuchsia is here. This package may
import only text and the errors.
"""
