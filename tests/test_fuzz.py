# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import pytest
from fuzz import failures
from fuzz_cases import KINDS, Models


@pytest.fixture(scope="module")
def models(random_pipe):
    with Models(random_pipe) as models:
        yield models


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "checkpoints"])
def test_malformed_inputs_are_refused_by_name_or_right(models, kind):
    assert list(failures(models, range(20), kinds=[kind], check_every=10)) == []
