"""One fuzzer in one guest: how it is run, what it writes, and what it finds.

`targets` tells which fuzzers a build has. `fuzzer` runs one of them in the way of its kind of guest (`styles`); what
the fuzzer writes passes through scanners and the symbolizer. `corpus` and `crashes` keep on the host what it has found.
The package knows no virtual machine, only a connection to a guest (`connector`); it may import builds, ssh, and what is
below them.
"""
