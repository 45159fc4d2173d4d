"""The packages: the checkout is ``longwave`` (``package-dir`` in pyproject.toml), and its rooms lie in it."""

from setuptools import find_packages, setup

ROOMS = ("benchmarks*", "kernels*", "models*", "results*", "sweeps*", "tasks*", "training*")
setup(packages=["longwave", *(f"longwave.{room}" for room in find_packages(include=ROOMS))])
