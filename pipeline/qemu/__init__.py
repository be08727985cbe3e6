"""QEMU: its command line, its process, its boot."""
