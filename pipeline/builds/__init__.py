"""Builds: where the files of a build are, which programs prepare them, and proofs of what these have made.

`build` finds a file by its key, in a Fuchsia checkout, in a bundle of ClusterFuzz, or in the Linux guest that `demo`
makes. `programs` chooses the `zbi` and `fvm` that are used, `prepare` runs them, and `proof` checks what they have
made. `elf` reads programs and libraries, and `targets` finds the fuzz targets that others have built. This
package may import images, ssh, and all packages below these.
"""
