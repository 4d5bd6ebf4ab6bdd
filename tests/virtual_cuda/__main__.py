"""`python -m tests.virtual_cuda SCRIPT ARGUMENTS`: a script on the virtual device."""

import os
import runpy
import sys

if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    from tests.virtual_cuda import install

    install()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
