"""Upkeep of the host and of the store: `topcoat doctor`, `topcoat gc` and `topcoat clean`.

`gc` removes what no living owner holds. Each kind of leftover has a module here, which tells how it is found, and how
it is removed without harm. This package may import vm, fuzz, builds, and what is below them.
"""
