"""Tensors that say cuda:0, keep their numbers in a CPU tensor, and refuse to meet CPU tensors as on a real device."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.virtual_cuda.watch import count

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
NO_CPU_SCALARS = {aten.cat.default, aten.stack.default}
# The host has to know the result, or its size.
SYNCHRONISES = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
SYNCHRONISES |= {"equal", "bincount", "is_nonzero"}
# CUDA multiplies no integers.
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution", "convolution_backward"}
# Operators made of others: PyTorch's, then ours too.
COMPOSITE = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")
RESHAPES_IN_PLACE = {"set_", "resize_", "resize_as_", "t_", "transpose_", "squeeze_", "unsqueeze_", "as_strided_"}


class VirtualTensor(Tensor):
    """A wrapped CPU tensor, `data_`."""

    @staticmethod
    def __new__(cls, data: Tensor) -> "VirtualTensor":
        kept = {name: getattr(data, name) for name in ("dtype", "layout", "requires_grad")}
        places = {"strides": data.stride(), "storage_offset": data.storage_offset(), "device": DEVICE}
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, **places, **kept)

    def __init__(self, data: Tensor) -> None:
        self.data_ = data

    # nn.Module.to swaps parameters of classes that have these two.
    def __tensor_flatten__(self):
        return ["data_"], None

    @staticmethod
    def __tensor_unflatten__(inner, _, __, ___):
        return VirtualTensor(inner["data_"])

    def tolist(self):
        count("synchronisations", "tolist")
        return self.data_.tolist()

    def numpy(self, *_, **__):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory."
        )

    def __array__(self, *_, **__):
        return self.numpy()

    # PyTorch would copy indices in a list to the device behind the back of dispatch modes.
    def __getitem__(self, index):
        return super().__getitem__(_on_the_device(index))

    def __setitem__(self, index, value):
        super().__setitem__(_on_the_device(index), value)

    def __repr__(self, **_) -> str:
        return f"VirtualTensor({self.data_!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, operator, _, args=(), kwargs=None):
        return _run(operator, args, kwargs or {})


class VirtualMode(TorchDispatchMode):
    """For calls in which no virtual tensor takes part: copies to the device, factories."""

    def __torch_dispatch__(self, operator, _, args=(), kwargs=None):
        return _run(operator, args, kwargs or {})


def is_cuda(device: Any) -> bool:
    """Whether a device, in any form that PyTorch takes, is of type cuda."""
    return device is not None and torch.device(device).type == "cuda"


def inner(value: Any) -> Any:
    """The CPU tensor behind a virtual one; anything else as it is."""
    return value.data_ if isinstance(value, VirtualTensor) else value


def _on_the_device(index: Any) -> tuple:
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(torch.as_tensor(part, device=DEVICE) if isinstance(part, list | range) else part for part in parts)


def _run(operator: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    for key in COMPOSITE if operator.namespace == "ttfs" else COMPOSITE[:1]:
        if torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key):
            with VirtualMode():  # what it is made of is watched
                return operator._op_dk(getattr(torch._C.DispatchKey, key), *args, **kwargs)
    name = operator._schema.name.split("::")[1]
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if operator is aten._to_copy.default:
        return _cast(operator, args[0], kwargs)
    if operator is aten.copy_.default:
        _count_copy(args[1], args[0], non_blocking=len(args) > 2 and args[2])
        operator(*tree_map(inner, args))
        return args[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    virtual = [tensor for tensor in tensors if isinstance(tensor, VirtualTensor)]
    on_device = bool(virtual)
    if kwargs.get("device") is not None:
        on_device = is_cuda(kwargs["device"])
        kwargs["device"] = torch.device("cpu")
    if virtual:
        _refuse(operator, name, args, tensors)
    if on_device:
        _count(operator, name, args, kwargs)
    result = operator(*tree_map(inner, args), **tree_map(inner, kwargs))
    wrappers = {id(tensor.data_): tensor for tensor in virtual}  # in-place operators return what they were given

    def wrap(value: Any) -> Any:
        if not on_device or not isinstance(value, Tensor):
            return value
        return wrappers[id(value)] if id(value) in wrappers else VirtualTensor(value)

    return tree_map(wrap, result)


def _cast(operator: Any, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
    device = kwargs.pop("device", None)
    to_device = isinstance(source, VirtualTensor) if device is None else is_cuda(device)
    result = operator(inner(source), **kwargs)
    target = VirtualTensor(result) if to_device else result
    _count_copy(source, target, non_blocking=kwargs.get("non_blocking", False))
    return target


def _count_copy(source: Tensor, target: Tensor, *, non_blocking: bool) -> None:
    """A copy between host and device waits for the device unless asked not to, in both directions."""
    from_device, to_device = isinstance(source, VirtualTensor), isinstance(target, VirtualTensor)
    if from_device or to_device:
        count("operators", "copy")
    if from_device != to_device and not non_blocking:
        count("synchronisations", "copy to the device" if to_device else "copy to the host")


def _count(operator: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    indices = [index for index in tree_leaves(args[1]) if index is not None] if operator in INDEXING else []
    masks = any(index.dtype == torch.bool for index in indices)
    moved = any(not isinstance(index, VirtualTensor) for index in indices)
    sizeless = name == "repeat_interleave" and kwargs.get("output_size") is None
    if name in SYNCHRONISES or masks or moved or sizeless:  # a mask becomes indices
        count("synchronisations", name)
    count("operators", name)


def _refuse(operator: Any, name: str, args: tuple, tensors: list[Tensor]) -> None:
    """Raise the errors of CUDA that a CPU would not raise."""
    if name in RESHAPES_IN_PLACE:
        raise NotImplementedError(f"the virtual CUDA device has no {name}")
    if name in PRODUCTS and not tensors[0].is_floating_point():
        raise RuntimeError(f"\"{name}_cuda\" not implemented for '{tensors[0].dtype}'")
    for tensor in tensors:
        if isinstance(tensor, VirtualTensor):
            continue
        if operator in INDEXING and isinstance(args[0], VirtualTensor):
            continue  # indices may come from the host
        if tensor.dim() > 0 or operator in NO_CPU_SCALARS:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"(in {operator})"
            )
