"""Atomicity: epochs, the registry of roots, the superblock, liveness and checks."""
