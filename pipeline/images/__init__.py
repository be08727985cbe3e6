"""Readers and writers of the images that a boot needs. `cpio`, `fvm` and `zbi` are commands too."""
