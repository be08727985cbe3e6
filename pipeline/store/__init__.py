"""The store: files that appear whole or not at all, their digests, and whether an artifact is fresh.

It knows no kind of artifact: callers give it paths, and keys to compare. This package may import host, text and the
settings.
"""
