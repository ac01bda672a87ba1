# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`python -m lumina_mgpt_diffusers.cli` is `lumina-mgpt`."""

from . import main


if __name__ == "__main__":
    main()
