"""Campaigns: many fuzzers, each with a budget, run in slices."""
