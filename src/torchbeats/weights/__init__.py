"""Checkpoints: whose file it is, reading and writing it, and where it comes from."""
