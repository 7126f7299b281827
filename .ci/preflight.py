"""What the installation needs, asked before it starts: what is missing gets one line with its remedy.

Runs with the machine's own Python, before anything is installed: `python3 .ci/preflight.py`.
"""

import glob
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig

FRESH_GB = 7.0  # an empty machine: 5.9 GB of unpacked packages, and the archives while they are unpacked
CACHED_GB = 0.5  # uv's cache holds the packages: hard links, about 0.1 GB
COPIED_GB = 6.5  # the cache lies on another disk: the packages are copied


def no_venv():
    """Debian and Ubuntu ship venv apart from Python."""
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return ""
    version = "{}.{}".format(*sys.version_info)
    return f"missing: venv for Python {version}; install python{version}-venv (or python3-venv)"


def no_compiler():
    """pydensecrf2 comes as source: a C++ compiler that finds Python.h."""
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    compiler = shlex.split(command)
    if not shutil.which(compiler[0]):
        return (
            f"missing: a C++ compiler ({compiler[0]}), which builds pydensecrf;"
            " install g++ (Debian, Ubuntu: build-essential), or name yours with CXX=..."
        )
    program = "#include <Python.h>\n#include <vector>\nint main() { return 0; }\n"
    include = "-I" + sysconfig.get_paths()["include"]
    command = [*compiler, "-x", "c++", "-fsyntax-only", include, "-"]
    done = subprocess.run(command, input=program, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    if "Python.h" in done.stderr:
        return "missing: Python.h, which pydensecrf is built with; install python3-dev (or python3-devel)"
    last = (done.stderr.strip().splitlines() or ["no message"])[0]
    return f"missing: a C++ compiler that works, which builds pydensecrf; {compiler[0]} says: {last}"


def no_disk():
    """Free space for the environment, and for uv's cache where that is another disk."""
    cache = os.environ.get("UV_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "uv"
    )
    with open("requirements.lock", encoding="utf-8") as lock:
        torch = re.search(r"^torch==(\S+)", lock.read(), re.M).group(1)
    cached = bool(glob.glob(os.path.join(glob.escape(cache), "archive-v*", "*", f"torch-{torch}.dist-info")))
    same_disk = os.stat(_existing(cache)).st_dev == os.stat(".").st_dev
    if same_disk:
        wanted = [(".", CACHED_GB if cached else FRESH_GB)]
    else:
        wanted = [(".", COPIED_GB), (cache, 0.1 if cached else FRESH_GB)]
    for folder, need in wanted:
        free = shutil.disk_usage(_existing(folder)).free / 1e9
        if free < need:
            where = "here" if folder == "." else "for uv's cache (UV_CACHE_DIR names another folder)"
            return f"missing: disk space; the packages need {need:.1f} GB {where}, {free:.1f} GB are free"
    return ""


def _existing(folder):
    while not os.path.exists(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    return folder


if __name__ == "__main__":
    missing = [line for line in (no_venv(), no_compiler(), no_disk()) if line]
    print("\n".join(missing), end="\n" if missing else "", file=sys.stderr)
    sys.exit(bool(missing))
