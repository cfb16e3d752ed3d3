"""Flags and arguments to the parts of a run."""
