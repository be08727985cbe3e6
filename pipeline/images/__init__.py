"""Readers and writers of the images that a boot needs. Each module is a command too."""
