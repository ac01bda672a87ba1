# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Nodes of ComfyUI for Lumina-mGPT. This folder is linked or copied into `ComfyUI/custom_nodes`."""

from .nodes import comfy_entrypoint


__all__ = ["comfy_entrypoint"]
