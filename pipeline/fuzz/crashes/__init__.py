"""Crashes that fuzzers have found: what they are, which have one cause, and where they are kept."""
