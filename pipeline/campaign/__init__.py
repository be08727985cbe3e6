"""Campaigns: many fuzzers, each with a budget, run in slices, and a ledger of all that was done.

`runner` shares out the slices, `attempt` is one run of one fuzzer in one guest, and `state` is the ledger added up.
This package may import vm, fuzz, builds, and what is below them.
"""
