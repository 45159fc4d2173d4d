"""The loop, checkpoints, runs, tracking and configuration; knows neither which model nor which task."""
