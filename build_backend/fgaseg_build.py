"""PEP 517 backend: setuptools, building against the torch of the environment that pip installs into.

Under build isolation pip gives the build an environment of its own, without torch; requesting torch there would
download a second copy and build against the wrong version. An isolated build still runs the target environment's
interpreter, so that environment's site-packages can be added to the path. Torch is requested only if none is found
there.
"""

import importlib.util
import os
import site
import sysconfig

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no torch)

PREFERRED = "torch>=2.11"


def _find_torch() -> bool:
    if importlib.util.find_spec("torch") is None:
        for directory in dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")):
            if os.path.isdir(directory):
                site.addsitedir(directory)  # processes .pth files; appends, so the build's own packages take precedence
        importlib.invalidate_caches()
    return importlib.util.find_spec("torch") is not None


def _requires_torch(config_settings=None):
    """setuptools' answer, without running setup.py, which imports torch."""
    return [] if _find_torch() else [PREFERRED]


def _with_torch(name):
    def hook(*args, **kwargs):
        _find_torch()
        return getattr(build_meta, name)(*args, **kwargs)

    return hook


get_requires_for_build_wheel = get_requires_for_build_editable = _requires_torch
prepare_metadata_for_build_wheel = _with_torch("prepare_metadata_for_build_wheel")
prepare_metadata_for_build_editable = _with_torch("prepare_metadata_for_build_editable")
build_wheel = _with_torch("build_wheel")
build_editable = _with_torch("build_editable")
build_sdist = _with_torch("build_sdist")
get_requires_for_build_sdist = _requires_torch
