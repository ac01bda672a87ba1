# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The demo, in a browser. It needs the extra `app`."""

from .app import build_demo, launch


__all__ = ["build_demo", "launch"]
