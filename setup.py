"""The packages, found anew at every build; all else is in pyproject.toml, which cannot join two sources of packages."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lmm_lens", "lmm_lens.*"]), "lmm_lens.adapters"],
    package_dir={"lmm_lens": "lmm_lens", "lmm_lens.adapters": "adapters"},
)
