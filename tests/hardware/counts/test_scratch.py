import torch

from ttfs_triton.hardware.counts.scratch import Scratch

CPU = torch.device("cpu")


def test_memory_is_used_again_and_grows():
    scratch = Scratch()
    first = scratch.empty(3, 4, torch.float32, CPU)
    assert (first.shape, first.dtype) == ((3, 4), torch.float32)
    assert scratch.empty(2, 5, torch.float32, CPU).data_ptr() == first.data_ptr()
    assert scratch.empty(3, 4, torch.int32, CPU).data_ptr() != first.data_ptr()
    larger = scratch.empty(30, 40, torch.float32, CPU)
    assert larger.fill_(1).shape == (30, 40)
    assert scratch.empty(1, 1, torch.float32, CPU).data_ptr() == larger.data_ptr()


def test_other_devices_get_memory_of_their_own():
    assert Scratch().empty(3, 4, torch.bfloat16, torch.device("meta")).is_meta
