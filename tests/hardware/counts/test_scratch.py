import threading

import torch

from ttfs_triton.hardware.counts.scratch import reserve, scratch
from ttfs_triton.nn.statistics import PART_BYTES

CPU = torch.device("cpu")


def test_memory_is_used_again_and_grows():
    reserve()
    first = scratch(3, 4, torch.float32, CPU)
    assert (first.shape, first.dtype) == ((3, 4), torch.float32)
    assert scratch(PART_BYTES // 8, 2, torch.float32, CPU).data_ptr() == first.data_ptr()
    assert scratch(3, 4, torch.int8, CPU).data_ptr() != first.data_ptr()
    larger = scratch(PART_BYTES, 2, torch.bfloat16, CPU)
    assert larger.fill_(1).shape == (PART_BYTES, 2)
    assert scratch(1, 1, torch.bfloat16, CPU).data_ptr() == larger.data_ptr()


def test_threads_do_not_share():
    ours, theirs = scratch(2, 2, torch.float32, CPU), []
    thread = threading.Thread(target=lambda: theirs.append(scratch(2, 2, torch.float32, CPU)))
    thread.start()
    thread.join()
    assert theirs[0].data_ptr() != ours.data_ptr()


def test_other_devices_get_memory_of_their_own():
    assert scratch(3, 4, torch.bfloat16, torch.device("meta")).is_meta
