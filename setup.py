"""The packages of a wheel, some of which lie elsewhere in the checkout; setup.cfg names the data in them."""

from setuptools import find_packages, setup

# Folders at the top of the checkout that an installed package has as hpcopt/share/FOLDER, see hpcopt/shipped.py.
SHARED = {f"hpcopt.share.{folder}": folder for folder in ("jobs", "slurm", "examples")}

setup(packages=[*find_packages(include=["hpcopt*"]), *SHARED], package_dir=SHARED)
