"""What a wheel carries; everything else about the package stands in pyproject.toml."""

from setuptools import find_packages, setup

# Folders at the top of the checkout that an installed package has as hpcopt/share/FOLDER, see hpcopt/shipped.py.
SHARED = {
    "jobs": ["*.toml"],
    "slurm": ["*.sh", "site/example.sh"],
    "examples": ["project/**/*"],
}

setup(
    packages=[*find_packages(include=["hpcopt*"]), *(f"hpcopt.share.{folder}" for folder in SHARED)],
    package_dir={f"hpcopt.share.{folder}": folder for folder in SHARED},
    package_data={
        "hpcopt": ["py.typed"],
        "hpcopt.report": ["page.html"],
        **{f"hpcopt.share.{folder}": files for folder, files in SHARED.items()},
    },
)
