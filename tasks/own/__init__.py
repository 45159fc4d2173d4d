"""Readers of a user's own data, and what :mod:`longwave.tasks.files` makes of them."""
