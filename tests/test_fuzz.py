# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import pytest
from fuzz import check, failures
from fuzz_cases import KINDS, Case, Models


@pytest.fixture(scope="module")
def models(random_pipe):
    with Models(random_pipe) as models:
        yield models


NUMBERS = {"logits": 6, "images": 10, "schedulers": 10, "texts": 10}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "checkpoints"])
def test_malformed_inputs_are_refused_by_name_or_right(models, kind):
    assert list(failures(models, range(NUMBERS.get(kind, 30)), kinds=[kind], check_every=10)) == []


def test_what_is_neither_refused_nor_right_is_told(models):
    """The fuzzer itself: a case of each kind of failure."""
    run = models.are_good
    cases = [
        (Case("", lambda: 1, ["x"], lambda result: True, "refused"), "accepted"),
        (Case("", lambda: 1, ["x"], lambda result: False), "wrong: 1"),
        (Case("", lambda: int("a"), ["x"], bool), "ValueError without a name"),
        (Case("", lambda: int("x"), ["x"], bool, "right"), "refused: "),
        (Case("", lambda: {}["x"], ["x"], bool), "KeyError: "),
        (Case("", lambda: (run(), int("x")), ["x"], bool), "refused after a model ran"),
    ]
    for case, problem in cases:
        (found,) = check(models, case)
        assert found.startswith(problem)
