"""Crashes that fuzzers have found: what they are, which are the same, and where they are kept."""
