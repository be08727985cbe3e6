"""What the commands of `topcoat` do. Each takes the settings and its options, and returns its exit code."""
