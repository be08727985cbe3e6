"""Text and quantities in the form that people and terminals get, and patterns for file names.

All of it is pure: nothing here opens a file. This package may import only the errors.
"""
