"""Imports of a run, for the server that `forked` forks from; the environment is set before, since imports read it."""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import torch._dynamo  # noqa: F401

import ttfs_triton.train.run  # noqa: F401
