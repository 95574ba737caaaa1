"""A pretended GPU: the CPU does its work, and what CUDA would refuse is refused here.

    with pretended_device() as device:  # torch.device("cuda"), a label only
        torch.randn(3, device=device) + torch.randn(3)  # RuntimeError, as with a GPU

A tensor on that device is a CPU tensor whose storage has a mark: an attribute, which views share
and which lives and dies with the storage, so that no reused address can mislead. One mode answers
what Python asks: where is it, move it, make one there. The other carries the marks through every
operation, autograd's and the optimizers' too.
"""

import contextlib
from types import SimpleNamespace
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

LABEL, PLACE, CPU = torch.device("cuda"), torch.device("cuda:0"), torch.device("cpu")
Tensor, aten = torch.Tensor, torch.ops.aten

COPY = {aten.copy_, aten._foreach_copy_}  # from device to device; each side stays where it is
INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
TAKE_CPU_NUMBERS = {*INDEX, aten.fill_, aten.masked_fill, aten.masked_fill_, aten.index_fill,
                    aten.index_fill_, aten.floor_divide, aten.floor_divide_, aten._foreach_mul,
                    aten._foreach_mul_}  # and all that torch calls pointwise


def is_marked(tensor):
    return getattr(tensor.untyped_storage(), "on_pretended_device", False)


def set_mark(tensor, marked=True):
    tensor.untyped_storage().on_pretended_device = marked
    return tensor


def is_label(device):
    """Whether a device, or its name or number, is the pretended one."""
    device = torch.device(LABEL.type, device) if isinstance(device, int) else torch.device(device)
    if device.type == LABEL.type and device.index:
        raise RuntimeError("CUDA error: invalid device ordinal")  # there is one GPU
    return device.type == LABEL.type


def tensors_in(values):
    """All tensors among arguments or results, alone or in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


class Move(torch.autograd.Function):
    """A copy on the other device. Its gradient moves back."""

    @staticmethod
    def forward(context, tensor, marked):
        context.marked = marked
        return set_mark(tensor.clone(), marked)

    @staticmethod
    def backward(context, gradient):
        return Move.apply(gradient, not context.marked), None


def move(tensor, marked):
    """The tensor itself if it is there already, else a copy, as Tensor.to does it."""
    return tensor if is_marked(tensor) == marked else Move.apply(tensor, marked)


# What Python asks. Each takes the function of torch that it stands for, and that one's arguments --

def to(function, tensor, *args, **kwargs):
    """Tensor.to, whose first argument is a device, a type of numbers or a tensor to be like."""
    target = args[0] if args else kwargs.get("device", kwargs.get("other"))
    marked = is_marked(tensor)
    if isinstance(target, Tensor):
        marked = is_marked(target)
    elif isinstance(target, (str, int, torch.device)):
        marked = is_label(target)
        if marked and args:
            args = (CPU, *args[1:])
        elif marked:
            kwargs = {**kwargs, "device": CPU}
    return move(function(tensor, *args, **kwargs), marked)


def to_numpy(function, tensor, *args, **kwargs):
    if kwargs.get("force"):
        tensor = move(tensor.detach(), False)
    if is_marked(tensor):
        raise TypeError(f"can't convert {PLACE} device type tensor to numpy. Use Tensor.cpu() to "
                        "copy the tensor to host memory first.")
    return function(tensor, *args, **kwargs)


def as_tensor(function, data, *args, device=None, **kwargs):
    made = function(data, *args, **kwargs)  # may be the data themselves
    return made if device is None else move(made, is_label(device))


def copied(function, data, *args, device=None, **kwargs):
    """Functions that copy unseen by the other mode: to where the original is, or where told."""
    there = is_label(device) if device is not None else isinstance(data, Tensor) and is_marked(data)
    return set_mark(function(data, *args, **kwargs), there)


ANSWERS = {
    Tensor.device.__get__: lambda ask, tensor: PLACE if is_marked(tensor) else ask(tensor),
    Tensor.is_cuda.__get__: lambda ask, tensor: is_marked(tensor),
    Tensor.is_cpu.__get__: lambda ask, tensor: ask(tensor) and not is_marked(tensor),
    Tensor.cpu: lambda _, tensor, **options: move(tensor, False),
    Tensor.cuda: lambda _, tensor, device=None, **options: move(tensor, is_label(device or 0)),
    Tensor.to: to, Tensor.type_as: to, Tensor.numpy: to_numpy, Tensor.__array__: to_numpy,
    torch.as_tensor: as_tensor, torch.asarray: as_tensor, torch.tensor: copied,
    Tensor.new_tensor: copied, Tensor.__deepcopy__: copied}


class PythonMode(TorchFunctionMode):
    """Gives these answers, and makes tensors where `device=` says."""

    about_marked = False  # whether the function that runs now was given marked tensors

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in ANSWERS:
            return ANSWERS[function](function, *args, **kwargs)
        device, generator = kwargs.get("device"), kwargs.get("generator")
        if device is not None and is_label(device):
            kwargs = {**kwargs, "device": CPU}
        self.about_marked = any(map(is_marked, tensors_in([*args, *kwargs.values()])))
        try:
            result = function(*args, **kwargs)
        finally:
            self.about_marked = False
        if device is not None and isinstance(result, Tensor):
            set_mark(result, is_label(device))
        if generator is not None and is_marked(result) != is_label(generator.device):
            kind = LABEL.type if is_marked(result) else CPU.type
            raise RuntimeError(f"Expected a '{kind}' device type for generator but found "
                               f"'{generator.device.type}'")
        return result


# The operations -----------------------------------------------------------------------------------

def refuse_two_devices(operation, args, tensors):
    if operation.overloadpacket in INDEX:
        if not is_marked(args[0]) and any(map(is_marked, tensors_in(args[1]))):
            raise RuntimeError("indices should be either on cpu or on the same device as the "
                               "indexed tensor (cpu)")
        tensors = list(tensors_in([args[0], *args[2:]]))  # the indices may be on the CPU
    if torch.Tag.pointwise in operation.tags or operation.overloadpacket in TAKE_CPU_NUMBERS:
        # A single number (no dimension) may be on the CPU, unless the result is written to it.
        written = list(tensors_in(args[:1])) if operation._schema.is_mutable else []
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
        kwargs = kwargs or {}
        tensors = list(tensors_in([*args, *kwargs.values()]))
        # What is made of no tensor, in the middle of a function of Python's, is where its are.
        marked = any(map(is_marked, tensors)) if tensors else self.python.about_marked
        if not marked or operation.overloadpacket in COPY:
            return operation(*args, **kwargs)
        refuse_two_devices(operation, args, tensors)
        result = operation(*args, **kwargs)
        for tensor in tensors_in([result]):
            set_mark(tensor)
        return result


# What torch has beside tensors --------------------------------------------------------------------

class Generator(torch.Generator):
    device = CPU  # where torch has an attribute that cannot be set

    def __new__(cls, device=CPU):
        generator = super().__new__(cls)
        generator.device = PLACE if is_label(device) else CPU
        return generator


def tag_in_file(storage):
    """What torch.save notes as a storage's place; None leaves it to torch."""
    storage = getattr(storage, "_untyped_storage", storage)
    return str(PLACE) if getattr(storage, "on_pretended_device", False) else None


def restore_from_file(storage, place):
    """How torch.load puts a storage where the file or `map_location` says; None as above."""
    if not place.startswith(LABEL.type):
        return None
    storage.on_pretended_device = True
    return storage


def set_random_state(state, device=LABEL):
    torch.set_rng_state(state)


def nothing(*_, **__):
    pass


@contextlib.contextmanager
def pretended_device():
    """While inside, torch has a GPU, whose label this gives. Other threads do not see it."""
    stream = SimpleNamespace(is_capturing=lambda: False)  # optimizers ask
    accelerator = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device_index": lambda: 0,
        "current_accelerator": lambda check_available=False: LABEL, "synchronize": nothing,
        "set_device_index": nothing, "current_stream": lambda device=None: stream}
    cuda = {"get_rng_state": lambda device=LABEL: torch.get_rng_state(), "synchronize": nothing,
            "set_rng_state": set_random_state}
    places = [(0, tag_in_file, restore_from_file), *torch.serialization._package_registry]
    python = PythonMode()
    with (mock.patch.multiple(torch.accelerator, create=True, **accelerator),
          mock.patch.multiple(torch.cuda, **cuda),
          mock.patch.object(torch, "Generator", Generator),
          mock.patch.object(torch.serialization, "_package_registry", places),
          python, OperationMode(python)):
        yield LABEL
