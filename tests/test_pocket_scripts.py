# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The card of the pocket model, its sheets, and the speculative sampling that its drafts are compared with."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The scripts import each other as scripts do: by the name of the file."""
    before, folders = set(sys.modules), [str(ROOT / "examples" / "pocket"), str(ROOT / "benchmarks")]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(tuple(folders)):
            del sys.modules[name]


@pytest.fixture
def figures(tmp_path) -> Path:
    from judge import CATEGORIES

    values = {name: [1.0, 0.0, 1.0, 1.0] for name in CATEGORIES}
    for split in ("test", "held_out"):
        path = tmp_path / f"prompts_{split}_192x192.json"
        path.write_text(json.dumps(values | {"overall": [0.75] * 8}))
    (tmp_path / "prompts_test_96x384.json").write_text(json.dumps(values))
    (tmp_path / "frechet.json").write_text(json.dumps({"distance": 3.14159, "num_images": 500}))
    (tmp_path / "tasks_test.json").write_text(
        json.dumps({"depth, relative error": [0.25, 0.25], "depth, relative error: round trip": [0.125]})
    )
    judged = {f"{name}: {kind}": [0.5] for name in CATEGORIES for kind in ("right", "round trip", "wrong")}
    (tmp_path / "judge_test_192x192.json").write_text(json.dumps(judged))
    return tmp_path


def test_the_card_has_the_figures_that_were_measured(figures):
    from card import figures_section

    text = figures_section(figures)
    assert "| category | held_out, 192x192 | test, 192x192 | test, 96x384 |" in text
    assert "| counting | 0.750 (" in text and "| depth, relative error | 0.250 (0.250 to 0.250) | 0.125 (" in text
    assert "| overall | 0.750 (0.750 to 0.750) | 0.750 (0.750 to 0.750) |  |" in text
    assert "| position | 0.500 (0.500 to 0.500) | 0.500" in text
    assert "Fréchet distance of 500 pictures" in text and "3.14." in text


def test_a_card_without_figures_is_none(tmp_path):
    from card import figures_section

    with pytest.raises(ValueError, match="has no prompts_"):
        figures_section(tmp_path)


def test_the_card_has_the_recipe_that_was_run(tmp_path):
    from card import recipe_table, vq_sentence

    record = {"resolution": 96, "steps": 9375, "train_batch_size": 32, "num_processes": 2, "learning_rate": 0.002}
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert "| 1 | 96 |  | 9,375 | 64 |  | 0.002 |" in recipe_table([tmp_path / "training.json"])
    lines = [{"step": 1000}, {"step": 2000, "psnr_depth_128_test": 33.33, "codes_used": 0.95, "perplexity": 250.3}]
    (tmp_path / "figures.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = vq_sentence(tmp_path / "figures.jsonl")
    assert "after 2,000 steps" in text and "95% of the codes" in text and "| depth 128 test | 33.3 |" in text


def test_pictures_with_their_texts():
    from show_pocket import in_rows, labelled

    picture = PIL.Image.new("RGB", (64, 32), "red")
    one, three = labelled(picture, "short"), labelled(picture, "a longer text of more lines")
    assert one.width == three.width == 64 and 32 < one.height < three.height
    sheet = np.asarray(in_rows([[one, three], [one]]))
    assert sheet.shape[1] > 128 and (sheet[:32, :64] == (255, 0, 0)).all() and (sheet[:32, 64] == 255).all()


def test_a_coupled_code_is_of_the_law_and_mostly_the_draft():
    from coupling import CoupledSampler, Draft

    sampler = SimpleNamespace(_random=torch.Generator().manual_seed(0))
    sampler._draw = lambda law: CoupledSampler._draw(sampler, law)
    draft_law, law = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.2, 0.3, 0.4, 0.1])
    drafts = [CoupledSampler._draw(sampler, draft_law) for _ in range(10000)]
    codes = [CoupledSampler._couple(sampler, Draft(code, draft_law), law) for code in drafts]
    assert torch.allclose(torch.bincount(torch.tensor(codes)) / 10000, law, atol=0.02)
    kept = sum(one == other for one, other in zip(drafts, codes)) / 10000
    assert kept == pytest.approx(float(torch.minimum(draft_law, law).sum()), abs=0.02)


@pytest.mark.parametrize("rule", ["jacobi", "coupled"])
def test_coupled_images_are_whole(random_pipe, rule):
    from coupling import CoupledSampler

    codes, num_forwards = CoupledSampler(random_pipe, "a", 32, 64, 3.0, rule, "above", 3, seed=0).run()
    assert len(codes) == 8 and 2 <= num_forwards <= 8
    assert CoupledSampler(random_pipe, "a", 32, 64, 3.0, rule, "above", 0, seed=0).run()[1] == 8
