"""A pretended GPU: the CPU does its work, and what CUDA would refuse is refused here.

    with pretended_device() as device:  # torch.device("cuda"), a label only
        torch.randn(3, device=device) + torch.randn(3)  # RuntimeError, as with a GPU

A tensor on that device is a CPU tensor whose storage has a mark: an attribute, which views share
and which lives and dies with the storage. One mode answers what Python asks: where is it, move it,
make one there. The other carries the marks through every operation.
"""

import contextlib
from types import SimpleNamespace
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LABEL, PLACE, CPU = torch.device("cuda"), torch.device("cuda:0"), torch.device("cpu")
Tensor, aten = torch.Tensor, torch.ops.aten
INDEX = {aten.index, aten.index_put, aten.index_put_}
TAKE_CPU_NUMBERS = {*INDEX, aten.fill_, aten.masked_fill, aten.masked_fill_}  # and all pointwise


def is_marked(tensor):
    return getattr(tensor.untyped_storage(), "on_pretended_device", False)


def set_mark(tensor, marked):
    tensor.untyped_storage().on_pretended_device = marked
    return tensor


def is_label(device):
    return torch.device(device).type == LABEL.type


def tensors_in(*values):
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


# What Python asks. Each takes the function of torch that it stands for, and that one's arguments --

def move(tensor, marked):
    return tensor if is_marked(tensor) == marked else set_mark(tensor.clone(), marked)


def to(function, tensor, *args, **kwargs):
    """Tensor.to: to a device, which comes first or by its name, or to a type of numbers."""
    target = args[0] if args else kwargs.pop("device", None)
    if not isinstance(target, (str, torch.device)):
        return function(tensor, *args, **kwargs)
    return move(function(tensor, CPU, *args[1:], **kwargs), is_label(target))


def to_numpy(function, tensor, *args, **kwargs):
    if is_marked(tensor):
        raise TypeError(f"can't convert {PLACE} device type tensor to numpy. Use Tensor.cpu() to "
                        "copy the tensor to host memory first.")
    return function(tensor, *args, **kwargs)


ANSWERS = {
    Tensor.device.__get__: lambda ask, tensor: PLACE if is_marked(tensor) else ask(tensor),
    Tensor.cpu: lambda _, tensor: move(tensor, False),
    Tensor.to: to, Tensor.numpy: to_numpy, Tensor.__array__: to_numpy,
    Tensor.__deepcopy__: lambda copy, tensor, memo: set_mark(copy(tensor, memo), is_marked(tensor))}


class PythonMode(TorchFunctionMode):
    """Gives these answers, and makes tensors where `device=` says."""

    about_marked = False  # whether the function that runs now was given marked tensors

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in ANSWERS:
            return ANSWERS[function](function, *args, **kwargs)
        device = kwargs.get("device")
        if device is not None and is_label(device):
            kwargs = {**kwargs, "device": CPU}
        self.about_marked = any(map(is_marked, tensors_in(args, kwargs)))
        try:
            result = function(*args, **kwargs)
        finally:
            self.about_marked = False
        if device is not None and isinstance(result, Tensor):
            set_mark(result, is_label(device))
        return result


# The operations -----------------------------------------------------------------------------------

def refuse_two_devices(operation, args, tensors):
    """Raise what CUDA raises, if these tensors, some of them marked, must not meet."""
    if operation.overloadpacket in INDEX:
        if not is_marked(args[0]) and any(map(is_marked, tensors_in(args[1]))):
            raise RuntimeError("indices should be either on cpu or on the same device as the "
                               "indexed tensor (cpu)")
        tensors = tensors_in(args[0], args[2:])  # the indices may be on the CPU
    if torch.Tag.pointwise in operation.tags or operation.overloadpacket in TAKE_CPU_NUMBERS:
        # A single number (no dimension) may be on the CPU, unless the result is written to it.
        written = tensors_in(args[0]) if operation._schema.is_mutable else []
        tensors = [one for one in tensors if one.dim() or is_marked(one)] + written
    if not all(map(is_marked, tensors)):
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two "
                           f"devices, {PLACE} and {CPU}!")


class OperationMode(TorchDispatchMode):
    """Marks what is made of marked tensors, and refuses operations on tensors of two devices."""

    def __init__(self, python):
        super().__init__()
        self.python = python

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        tensors = tensors_in(args, kwargs)
        # What is made of no tensor, in the middle of a function of Python's, is where its are.
        marked = any(map(is_marked, tensors)) if tensors else self.python.about_marked
        watched = marked and operation.overloadpacket != aten.copy_  # which goes between them
        if watched:
            refuse_two_devices(operation, args, tensors)
        result = operation(*args, **kwargs or {})
        for tensor in tensors_in(result) if watched else []:
            set_mark(tensor, True)
        return result


@contextlib.contextmanager
def pretended_device():
    """While inside, torch has a GPU, whose label this gives. Other threads do not see it."""
    stream = SimpleNamespace(is_capturing=lambda: False)  # optimizers ask
    accelerator = {
        "is_available": lambda: True, "current_stream": lambda device=None: stream,
        "device_count": lambda: 1, "current_accelerator": lambda check_available=False: LABEL}
    python = PythonMode()
    with (mock.patch.multiple(torch.accelerator, create=True, **accelerator), python,
          OperationMode(python)):
        yield LABEL
