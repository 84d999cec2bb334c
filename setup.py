"""Which packages the distribution holds: all of ``rowvec``, and the folders ``flows`` and ``tasks`` under own names.

An installed ``flows`` or ``tasks`` would hide a user's own, so these two are imported as ``rowvec_flows`` and
``rowvec_tasks``. Everything else about the distribution stands in ``pyproject.toml``, which cannot express both.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["rowvec", "rowvec.*"]), "rowvec_flows", "rowvec_tasks"],
    package_dir={"rowvec_flows": "flows", "rowvec_tasks": "tasks"},
)
