"""What a run imports, for the process that all in `forked` are forked from; first, what is read at the import."""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import torch._dynamo  # noqa: F401

import ttfs_triton.train.run  # noqa: F401
