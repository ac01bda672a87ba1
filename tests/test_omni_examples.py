# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The examples run, and so does the code of the documentation."""

import functools
import importlib.util
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from omni import FIXTURES, arrays, chat_from, img2img_from, trained_runs

from lumina_mgpt_diffusers import TASKS, LuminaMGPTChatPipeline, LuminaMGPTImg2ImgPipeline


EXAMPLES = FIXTURES.parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example in this process, which spares the imports, and gives what it prints."""

    def run_example(name: str, *arguments: str | Path, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chat.py", "image_to_image.py", "text_to_image.py"])
def test_an_example_runs_as_it_stands(tmp_path, name):
    process = subprocess.run([sys.executable, EXAMPLES / name], input="/quit", text=True, cwd=tmp_path, timeout=300)
    assert process.returncode == 0


def test_image_to_image(tmp_path, run, saved_folder):
    image = tmp_path / "in.png"
    PIL.Image.fromarray(arrays("7b_like/images.npz")["rgb_128x64_wh"]).save(image)
    options = ["--model", saved_folder, "--top_k", "1", "--output", tmp_path / "out" / "depth.png"]
    said = run("image_to_image.py", "--image", image, *options)
    assert PIL.Image.open(tmp_path / "out" / "depth.png").size == (128, 64)
    assert np.load(tmp_path / "out" / "depth.npy").shape == (64, 128)
    assert said.count("Saved") == 2


def test_chat(tmp_path, run, trained_pipe):
    trained_pipe.save_pretrained(tmp_path / "model")
    picture = trained_runs()["understand"]["images"][0]
    PIL.Image.fromarray(picture).resize((96, 96)).save(tmp_path / "my fox.png")
    lines = [
        "Hello, who are you?",
        "Generate an image of 64x64",
        "Describe @nothing.png",
        "/new",
        f'Describe the image in detail. @"{tmp_path / "my fox.png"}"',
        "/quit",
    ]
    said = run(
        "chat.py",
        *[
            "--model",
            tmp_path / "model",
            "--greedy",
            "--guidance_scale",
            "3",
            "--output",
            tmp_path / "images",
            "--max_new_tokens",
            "40",
        ],
        stdin="\n".join(lines),
    )
    answers = said.split("> ")[1:]
    assert answers[0] == "I am a tiny model.\n"
    assert re.fullmatch(r"\[.*001\.png\]\n", answers[1])
    assert "'nothing.png', which cannot be opened" in answers[2]
    assert len(answers) == 6 and answers[4].strip()
    expected = arrays("7b_like_trained/generated_images.npz")["two_turns/out0"].astype(int)
    assert np.abs(np.asarray(PIL.Image.open(tmp_path / "images" / "001.png")) - expected).max() <= 1


def test_the_code_of_the_documentation_runs(tmp_path, monkeypatch, trained_pipe):
    """In order, with the tiny checkpoint in place of the released one."""
    monkeypatch.chdir(tmp_path)
    for name in ("fox.png", "snow.png"):
        PIL.Image.fromarray(arrays("7b_like/images.npz")["rgb_96x96"]).save(name)
    monkeypatch.setitem(TASKS, "sketch", TASKS["depth"])  # what the page adds goes away with it
    call = LuminaMGPTChatPipeline.__call__
    monkeypatch.setattr(
        LuminaMGPTImg2ImgPipeline,
        "from_pretrained",
        lambda *args, **kwargs: SimpleNamespace(to=lambda device: img2img_from(trained_pipe)),
    )
    monkeypatch.setattr(LuminaMGPTChatPipeline, "from_pipe", lambda *args, **kwargs: chat_from(trained_pipe))
    monkeypatch.setattr(
        LuminaMGPTChatPipeline, "__call__", lambda *args, **kwargs: call(*args, **kwargs, max_new_tokens=30)
    )
    stream = LuminaMGPTChatPipeline.stream
    short = functools.wraps(stream)(lambda *args, **kwargs: stream(*args, **kwargs, max_new_tokens=60))
    monkeypatch.setattr(LuminaMGPTChatPipeline, "stream", short)
    text = (EXAMPLES.parent / "docs" / "omni.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```py\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 10
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "docs/omni.md", "exec"), namespace)
    assert namespace["depth"].shape == (96, 96) and len(namespace["several"]) == 2


def test_the_chat_example_reads_its_lines():
    spec = importlib.util.spec_from_file_location("chat_example", EXAMPLES / "chat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    content, paths = module.read_line('Put @a.png into @"b c.png" now')
    assert content == [
        {"type": "text", "text": "Put "},
        {"type": "image"},
        {"type": "text", "text": " into "},
        {"type": "image"},
        {"type": "text", "text": " now"},
    ]
    assert paths == ["a.png", "b c.png"]
    assert module.read_line("no image <|image|>") == ([{"type": "text", "text": "no image <|image|>"}], [])
