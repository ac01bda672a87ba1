# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A CUDA device for machines that have none: tensors of the host that say they are on `cuda:0`.

The host's kernels compute, so results equal the host's. What goes wrong on a GPU goes wrong here:
- an operation on tensors of both devices raises;
- a non-blocking copy to the host holds garbage until the host waits for an event recorded after it, or for the device;
- whatever makes the host wait is recorded, with the line of the project that caused it.

Only calls from the thread that entered the context are seen.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from conftest import copy_of
from diffusers import DiffusionPipeline
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import lumina_mgpt_diffusers


CUDA, HOST = torch.device("cuda", 0), torch.device("cpu")
PROJECT = str(Path(lumina_mgpt_diffusers.__file__).parent)

# The host waits for the result of these: it is a value of Python, or its shape depends on values.
WAITING = {"item", "tolist", "equal", "allclose", "is_nonzero", "nonzero", "argwhere", "masked_select", "unique"}
WAITING |= {"unique_consecutive", "bincount", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
WAITING |= {"__format__", "__repr__"}


class CudaTensor(torch.Tensor):
    device, is_cuda, is_cpu = CUDA, True, False


class EmulatedCuda(TorchFunctionMode):
    """
    The device and its one stream, from [`emulated_cuda`].

    `syncs` has an entry `"<file>:<line> <call>"` for each wait of the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[str] = []
        self._copies: list[Callable[[], Any]] = []  # to the host, not there yet

    def move(self, pipe: DiffusionPipeline) -> DiffusionPipeline:
        """The pipeline with copies of its models on this device."""
        return copy_of(pipe).to("cuda")

    def wait(self, call: str, copies: Iterable[Callable] | None = None) -> None:
        """The host waits until these copies are there, by default all."""
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PROJECT):
            frame = frame.f_back
        place = "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        self.syncs.append(f"{place} {call}")
        self._finish(self._copies if copies is None else copies)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event(self)
        event.record()
        return event

    def synchronize(self, device: Any = None) -> None:
        self.wait("synchronize")

    def _finish(self, copies: Iterable[Callable]) -> None:
        for finish in [unfinished for unfinished in self._copies if unfinished in copies]:
            self._copies.remove(finish)
            finish()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return self._call(func, func.__name__, args, dict(kwargs or {}))

    def _call(self, func: Callable, name: str, args: tuple, kwargs: dict) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_device = any(tensor.is_cuda for tensor in tensors)
        if name in ("__get__", "__set__"):  # of a property: of the tensor itself
            return tree_map(on_cuda, func(*args)) if on_device else func(*args)
        if name == "_has_compatible_shallow_copy_type":  # for `Module.to`
            return args[0].is_cuda == args[1].is_cuda
        if name in ("to", "cuda", "cpu"):
            return self._to(name, *args, **kwargs)
        if name in ("as_tensor", "asarray") and tensors:
            return self._to("to", tensors[0], device=kwargs.get("device"), dtype=kwargs.get("dtype"))
        if name == "copy_":
            return self._copy(*args, **kwargs)
        if name == "pin_memory":
            return args[0]
        if name in ("numpy", "__array__") and on_device:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

        if name in ("__getitem__", "__setitem__"):
            self._check_index(*args)
            on_device = args[0].is_cuda
        elif on_device and any(not tensor.is_cuda and tensor.ndim for tensor in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu")
        if on_device and (name in WAITING or (name == "where" and len(args) + len(kwargs) == 1)):
            self.wait(name)

        kwargs.pop("pin_memory", None)
        if kwargs.get("device") is not None:
            on_device = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = HOST
            if on_device and name in ("tensor", "as_tensor", "asarray"):
                self.wait(name)  # for a copy from memory that is not pinned
        if on_device and getattr(kwargs.get("generator"), "device", CUDA).type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        result = func(*tree_map(on_host, args), **tree_map(on_host, kwargs))
        if name.endswith("_") and not name.endswith("__"):
            return tensors[0]  # in place
        return tree_map(on_cuda, result) if on_device else result

    def _check_index(self, tensor: torch.Tensor, index: Any, value: Any = None) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        numbers = [bound for part in parts if isinstance(part, slice) for bound in (part.start, part.stop)]
        numbers += [part for part in parts if isinstance(part, torch.Tensor) and part.ndim == 0]
        if any(isinstance(number, CudaTensor) for number in numbers):
            self.wait("index")
        indices = [part for part in parts if isinstance(part, torch.Tensor) and part.ndim > 0]
        is_away = isinstance(value, torch.Tensor) and value.is_cuda != tensor.is_cuda
        if indices and (is_away and value.ndim > 0 or any(part.is_cuda > tensor.is_cuda for part in indices)):
            raise RuntimeError("Expected indices and values to be on the device of the tensor, but got cuda:0 and cpu")
        if is_away or any(part.is_cuda < tensor.is_cuda for part in indices):
            self.wait("copy")
        is_one_value = value is not None and getattr(value, "numel", lambda: 1)() == 1  # then it is a `masked_fill_`
        if tensor.is_cuda and any(part.dtype == torch.bool for part in indices) and not is_one_value:
            self.wait("boolean index")

    def _to(self, name: str, source: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype, non_blocking = {"cpu": HOST, "cuda": CUDA}.get(name), None, kwargs.get("non_blocking", False)
        if args and isinstance(args[0], torch.Tensor):
            device, dtype = args[0].device, args[0].dtype
        elif name == "to":
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        to_device = source.is_cuda if device is None else device.type == "cuda"
        if to_device == source.is_cuda:
            if dtype in (None, source.dtype) and not kwargs.get("copy"):
                return source
            values = on_host(source).to(dtype, copy=True)
            return on_cuda(values) if to_device else values
        target = torch.empty_like(on_host(source), dtype=dtype)
        return self._copy(on_cuda(target) if to_device else target, source, non_blocking)

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        memory, values = on_host(target), on_host(source)
        if source.is_cuda and not target.is_cuda and non_blocking:
            values = values.to(memory.dtype).expand_as(memory).clone()
            memory.copy_(torch.full_like(values, torch.nan) if values.is_floating_point() else ~values)
            self._copies.append(lambda: memory.copy_(values))
            return target
        if source.is_cuda != target.is_cuda and not non_blocking:
            self.wait("copy")
        memory.copy_(values)
        return target


class Event:
    """`torch.cuda.Event`: reached once the host waits for it, or asks for the second time."""

    def __init__(self, device: EmulatedCuda) -> None:
        self._device, self._copies, self._asked = device, [], False

    def record(self, stream: Any = None) -> None:
        self._copies, self._asked = list(self._device._copies), False

    def synchronize(self) -> None:
        self._device.wait("Event.synchronize", self._copies)

    def query(self) -> bool:
        if self._asked:
            self._device._finish(self._copies)
        reached, self._asked = self._asked, True
        return reached


def on_cuda(value: Any) -> Any:
    """A tensor as one of the device; anything else as it is."""
    return value.as_subclass(CudaTensor) if isinstance(value, torch.Tensor) else value


def on_host(value: Any) -> Any:
    """A tensor as the one of the host that it is, also in a slice; anything else as it is."""
    if isinstance(value, slice):
        return slice(on_host(value.start), on_host(value.stop), on_host(value.step))
    return value.as_subclass(torch.Tensor) if isinstance(value, CudaTensor) else value


@contextmanager
def emulated_cuda() -> Iterator[EmulatedCuda]:
    """For as long as it lasts, tensors can be on `cuda`, and `torch.cuda` has streams and events of that device."""
    device = EmulatedCuda()
    functions = {
        "current_stream": lambda _=None: device,
        "Event": lambda **_: Event(device),
        "synchronize": device.synchronize,
    }
    with mock.patch.multiple(torch.cuda, **functions), device:
        yield device
