# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import pytest
from fuzz_reading import failures


@pytest.mark.parametrize("seed", [0, 1])
def test_malformed_images_and_messages_are_read_or_refused_by_name(seed):
    assert list(failures(250, seed)) == []
