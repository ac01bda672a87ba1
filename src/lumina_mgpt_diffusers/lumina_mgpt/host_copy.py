# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Copies of small tensors to the host that do not make it wait for the device."""

from __future__ import annotations

import torch


class HostCopy:
    """
    A tensor on its way to the host.

    Making it only queues the copy. Reading it waits until the device has come that far.

    Args:
        tensor (`torch.Tensor`): The tensor as it is now; later changes are not seen.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
        self._copy.copy_(tensor, non_blocking=tensor.is_cuda)
        self._event = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def tolist(self) -> list:
        if self._event is not None:
            self._event.synchronize()
        return self._copy.tolist()
