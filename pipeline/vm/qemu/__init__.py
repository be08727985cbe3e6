"""Guests in QEMU: the command line, the process, the boot and its verdict."""
