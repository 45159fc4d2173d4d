"""Sweeps: which runs a table needs, which are missing, how long they take, and how far they are."""
