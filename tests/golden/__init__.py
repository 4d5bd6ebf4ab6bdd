"""Recorded values of the package, which a change of the code keeps unless it says otherwise.

    make golden                  computes all values and prints those that differ from the recorded ones
    make golden ARGS=--write     records them anew

`cases` computes them by public functions alone, `record` compares them: values.json holds numbers, and of each tensor
a hash and two means; values.safetensors holds samples of its elements.
"""

import os

import torch

# Without a GPU, kernels run in Triton's interpreter; Triton reads this when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
