"""The demo guest: a small Linux made of Debian packages, so that everything runs without a Fuchsia checkout."""
