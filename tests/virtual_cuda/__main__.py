"""`python -m tests.virtual_cuda SCRIPT ARGUMENTS`: a script on the virtual device."""

import os
import runpy
import sys
import tempfile

if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("TTFS_KERNELS_CACHE", tempfile.mkdtemp(prefix="ttfs-"))  # no table of the user's
    from tests.virtual_cuda import install

    install()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
