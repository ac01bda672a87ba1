# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The command `lumina-mgpt`, in the process of the tests."""

import importlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import CHECKPOINT, VQGAN
from diffusers import DiffusionPipeline
from omni import arrays

from lumina_mgpt_diffusers import LuminaMGPTChatPipeline, LuminaMGPTPipeline
from lumina_mgpt_diffusers.cli import build_parser, chat, edit, generate, main
from lumina_mgpt_diffusers.cli.hosting import read_key


COMMANDS = {
    "generate": ["PROMPT", "what the image shows", "--height", "--guidance_schedule", "--num_images", "--output"],
    "edit": ["IMAGE", "--prompt", "--task", "depth, normal, segmentation", "to_canny", "--free_size"],
    "chat": ["--max_new_tokens", "--text_temperature", "@fox.png", "/quit"],
    "app": ["--port", "http://127.0.0.1:7860", "--max_slots"],
    "serve": ["--port", "--api_key_file", "LUMINA_MGPT_API_KEY", "--max_pixels", "--fetch_from", "curl"],
    "batch": ["PROMPTS", "--output", "--ray", "--num_actors", "--seed"],
    "convert": ["SOURCE", "OUTPUT", "--to", "--original_vqgan"],
    "memory": ["--model", "--num_images", "--available"],
}
"""What the help of each has to name."""


# Of the extras, what neither transformers nor diffusers imports by itself.
EXTRAS = {"fastapi", "starlette", "uvicorn", "python_multipart", "prometheus_client", "gradio", "ray", "openai"}
EXTRAS |= {"pyarrow", "datasets", "tensorboard", "xformers"}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a command in an empty folder and gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: object) -> str:
        capsys.readouterr()
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run_command


@pytest.fixture
def refuses(run, capsys):
    def check(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            run(*arguments)
        assert exit_.value.code == 2
        return capsys.readouterr().err

    return check


@pytest.fixture
def preloaded(monkeypatch, random_pipe):
    """Spares commands the loading."""

    def load(pipeline_class: type, args: object) -> DiffusionPipeline:
        return pipeline_class(**random_pipe.components)

    for command in (chat, edit, generate):
        monkeypatch.setattr(command, "load_pipeline", load)


def test_generate(run, tmp_path, saved_folder, random_pipe):
    options = ["--height", 32, "--width", 64, "--top_k", 50, "--num_draft_tokens", 3, "--draft_init", "above"]
    options += ["--top_p", 0.9, "--min_p", 0.01]
    said = run("generate", "a cat", "a dog", "--model", saved_folder, *options, "--num_images", 2, "--seed", 5)
    paths = [tmp_path / f"lumina_mgpt_{seed}.png" for seed in (5, 6, 7, 8)]
    assert said.splitlines() == [f"Saved {path.name}" for path in paths]
    for path, prompt, seed in zip(paths, ["a cat", "a cat", "a dog", "a dog"], (5, 6, 7, 8)):
        image = PIL.Image.open(path)
        generator = torch.Generator().manual_seed(seed)
        expected = random_pipe(prompt, height=32, width=64, top_k=50, top_p=0.9, min_p=0.01, generator=generator)
        assert (np.asarray(image) == np.asarray(expected.images[0])).all()
        settings = json.loads(image.text["parameters"])
        assert (settings["prompt"], settings["seed"], settings["top_k"]) == (prompt, seed, 50)
        assert settings["sampler"]["num_draft_tokens"] == 3 and settings["sampler"]["draft_init"] == "above"
        assert settings["batch_size"] == 4 and settings["device"] == "cpu" and settings["dtype"] == "float32"
        assert settings["versions"]["torch"] == torch.__version__
        assert "guidance_scale" not in settings and settings["sampler"]["guidance_scale"] == 4.0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}


def test_generate_with_a_size_for_each_prompt(run, refuses, capsys, tmp_path, preloaded):
    prompts = ["generate", "a cat", "a dog", "--model", "tiny"]
    main([*prompts, "--height", "32,64", "--width", "64", "--num_images", "2"])
    assert "100%" in capsys.readouterr().err  # of the progress
    sizes = [PIL.Image.open(tmp_path / f"lumina_mgpt_{seed}.png").size for seed in range(4)]
    assert sizes == [(64, 32), (64, 32), (64, 64), (64, 64)]
    for name in ("height", "width"):
        assert f"`{name}`" in refuses(*prompts, f"--{name}", "32,32,32")


def test_the_schedule_of_guidance(run, tmp_path, saved_folder):
    size = ["--height", 32, "--width", 32]
    run("generate", "a cat", "--model", saved_folder, *size, "--guidance_schedule", "decay")
    settings = json.loads(PIL.Image.open(tmp_path / "lumina_mgpt.png").text["parameters"])
    assert settings["sampler"]["guidance_schedule"] == "decay"


def test_generate_from_an_original_checkpoint(run, tmp_path):
    model = ["--model", CHECKPOINT, "--original_vqgan", VQGAN, "--dtype", "bfloat16"]
    run("generate", "a cat", *model, "--height", 32, "--width", 32, "--output", "images/cat")
    assert PIL.Image.open(tmp_path / "images" / "cat.png").size == (32, 32)


def test_edit(run, tmp_path, preloaded):
    PIL.Image.fromarray(arrays("7b_like/images.npz")["rgb_128x64_wh"]).save(tmp_path / "in.png")
    model = ["--model", "tiny", "--top_k", 1]
    said = run("edit", "in.png", *model, "--output", "out/depth.png")
    assert said.splitlines() == ["Saved out/depth.png", "Saved out/depth.npy"]
    assert PIL.Image.open(tmp_path / "out" / "depth.png").size == (128, 64)
    assert np.load(tmp_path / "out" / "depth.npy").shape == (64, 128)
    assert run("edit", "in.png", *model, "--prompt", "Make it night.", "--seed", 2) == "Saved lumina_mgpt.png\n"
    settings = json.loads(PIL.Image.open(tmp_path / "lumina_mgpt.png").text["parameters"])
    assert (settings["task"], settings["prompt"], settings["images"]) == ("edit", "Make it night.", ["in.png"])


def test_edit_with_two_panels(run, tmp_path, monkeypatch, pipe_2):
    monkeypatch.setattr(edit, "load_pipeline", lambda pipeline_class, args: pipeline_class(**pipe_2.components))
    PIL.Image.fromarray(arrays("7b_like/images.npz")["rgb_96x96"]).save(tmp_path / "in.png")
    options = ["--prompt", "a cat", "--task", "depth", "--height", 128, "--width", 64]
    run("edit", "in.png", *options, "-o", "both.png")
    run("edit", "in.png", *options, "--result_only", "-o", "result.png")
    both, result = PIL.Image.open(tmp_path / "both.png"), PIL.Image.open(tmp_path / "result.png")
    assert (np.asarray(result) == np.asarray(both)[64:]).all()
    for image, is_alone in ((both, None), (result, True)):
        settings = json.loads(image.text["parameters"])
        assert (settings["height"], settings["width"], settings.get("result_only")) == (128, 64, is_alone)


def test_chat(run, tmp_path, monkeypatch, trained_pipe):
    trained_pipe.save_pretrained(tmp_path / "model")
    PIL.Image.fromarray(arrays("7b_like/images.npz")["rgb_96x96"]).save(tmp_path / "my fox.png")
    lines = ["Hello, who are you?", "", "Describe @nothing.png", "/new", 'What is @"my fox.png"?', "/quit"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    answers = run("chat", "--model", "model", "--greedy", "--max_new_tokens", 30).split("> ")[1:]
    assert answers[0] == "I am a tiny model.\n"
    assert "nothing.png" in answers[2]
    assert len(answers) == 6 and answers[4].strip()


def test_a_chat_takes_the_settings_of_the_sampler(run, refuses, monkeypatch, preloaded):
    asked = []
    monkeypatch.setattr(LuminaMGPTChatPipeline, "stream", lambda self, *args, **kwargs: asked.append(kwargs) or [])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    wanted = {"guidance_scale": 2.0, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.01}
    wanted |= {"text_temperature": 0.25, "text_top_k": 3}
    options = [option for name, value in wanted.items() for option in (f"--{name}", value)]
    run("chat", "--model", "tiny", *options, "--max_new_tokens", 4)
    assert wanted.items() <= asked[0].items() and asked[0]["max_new_tokens"] == 4
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    run("chat", "--model", "tiny", "--greedy", "--num_draft_tokens", 2)
    assert asked[1]["temperature"] == asked[1]["text_temperature"] == 0.0 and asked[1]["top_k"] is None
    assert "`text_temperature`" in refuses("chat", "--model", "tiny", "--greedy", "--text_temperature", 0.5)


def test_convert_there_and_back(run, refuses, tmp_path, random_pipe):
    run("convert", CHECKPOINT, "pipeline", "--original_vqgan", VQGAN, "--base_size", 96)
    pipe = LuminaMGPTPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.scheduler.config.resolution == 96
    weights = random_pipe.transformer.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in pipe.transformer.state_dict().items())
    run("convert", "pipeline", "original", "--to", "original")
    assert (tmp_path / "original" / "original_tokenizers" / "vqgan.ckpt").is_file()
    assert "--original_vqgan" in refuses("convert", CHECKPOINT, "other")
    assert "--base_size" in refuses("convert", "pipeline", "other", "--to", "original", "--base_size", 96)
    assert not (tmp_path / "other").exists()


def test_memory(run, saved_folder):
    options = ["--height", 64, "--width", 64, "--dtype", "float32"]
    of_a_pipeline = run("memory", "--model", saved_folder, *options)
    assert [line.split()[-1] for line in of_a_pipeline.splitlines()] == ["GiB"] * 5
    of_an_original = run("memory", "--model", CHECKPOINT, *options)
    assert of_an_original == of_a_pipeline
    assert run("memory", "--model", CHECKPOINT, *options, "--available", 2).endswith("images at once\n")
    assert run("memory", "--model", CHECKPOINT, *options, "--vqvae_dtype", "bfloat16") != of_a_pipeline


def test_what_does_not_fit_is_said_without_a_traceback(refuses, saved_folder, preloaded):
    model = ["--model", saved_folder]
    assert "500" in refuses("generate", "a cat", *model, "--height", 500)
    assert "`num_images`" in refuses("generate", "a cat", *model, "--num_images", 0)
    assert "`height`" in refuses("memory", *model, "--height", 0)
    assert "nothing.png" in refuses("edit", "nothing.png", *model)
    assert "COMMAND" in refuses()


def test_a_model_that_is_nowhere(refuses):
    assert "nowhere" in refuses("generate", "a cat", "--model", "nowhere")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(run, command, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(command, "--help")
    assert exit_.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert not [name for name in (f"lumina-mgpt {command}", *COMMANDS[command]) if name not in said]


def test_a_task_by_its_other_name(run, tmp_path, preloaded):
    PIL.Image.fromarray(arrays("7b_like/images.npz")["rgb_96x96"]).save(tmp_path / "in.png")
    said = run("task", "in.png", "--model", "tiny", "--task", "normal", "--height", 32, "--width", 32)
    assert said.splitlines()[0] == "Saved lumina_mgpt.png"


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_commands_of_the_documentation(page):
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("lumina-mgpt ")]
    for command in commands:
        build_parser().parse_args(command[1:])
    if page in ("README.md", "docs/command_line.md"):
        assert COMMANDS.keys() <= {command[1] for command in commands}


def test_what_an_extra_is_needed_for(refuses, monkeypatch, saved_folder):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("lumina_mgpt_diffusers.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install 'lumina-mgpt-diffusers[serve]'" in refuses("serve", "--model", saved_folder)


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_slots", 1),
        ("max_waiting", 0),
        ("max_length", 0),
        ("max_images", 0),
        ("max_pixels", -1),
        ("request_seconds", -1),
        ("request_seconds", 0),
        ("request_seconds", "nan"),
        ("max_connections", 0),
        ("port", 70_000),
        ("log_level", "foo"),
    ],
)
def test_impossible_numbers_of_a_server_are_found_before_the_model_is_loaded(refuses, name, value):
    said = refuses("serve", "--model", "nowhere", f"--{name}", value)
    assert f"`{name}`" in said or f"--{name}: invalid choice" in said


def test_the_key_of_a_server(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("secret\n")
    assert read_key(tmp_path / "key") == "secret" and read_key(None) is None
    monkeypatch.setenv("LUMINA_MGPT_API_KEY", "other")
    assert read_key(None) == "other"
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        read_key(tmp_path / "key")


@pytest.mark.slow
def test_serving_until_sigterm(saved_folder, tmp_path):
    """What runs when the signal comes is finished, and the process ends well."""
    command = [
        sys.executable,
        "-m",
        "lumina_mgpt_diffusers.cli",
        "serve",
        "--model",
        str(saved_folder),
        "--name",
        "tiny",
    ]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
        try:
            end = time.monotonic() + 120
            while time.monotonic() < end:
                try:
                    assert httpx.get(f"{url}/health").status_code == 200
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            with ThreadPoolExecutor() as pool:
                body = {"prompt": "a cat", "n": 8, "seed": 1}
                pending = pool.submit(httpx.post, f"{url}/v1/images/generations", json=body, timeout=100)
                while httpx.get(f"{url}/health").json()["running"] < 8:
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                assert len(pending.result().json()["data"]) == 8
            assert process.wait(60) in (0, -signal.SIGTERM)
        finally:
            process.kill()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_the_package_imports_neither_its_command_nor_an_extra():
    """In a fork that imports the package anew, since a process that imports torch too takes many seconds."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, str(imported_anew()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        imported = pipe.read()
    os.waitpid(pid, 0)
    assert imported == "[]"


def imported_anew() -> list[str]:
    """What an import of the package, and then of its command and host, brings in that it should not."""
    for name in list(sys.modules):
        if name.partition(".")[0] in {"lumina_mgpt_diffusers", *EXTRAS}:
            del sys.modules[name]
    importlib.import_module("lumina_mgpt_diffusers")
    unwanted = [name for name in sys.modules if name.startswith("lumina_mgpt_diffusers.cli")]
    importlib.import_module("lumina_mgpt_diffusers.cli")
    importlib.import_module("lumina_mgpt_diffusers.serving")
    return sorted({*unwanted, *(EXTRAS & sys.modules.keys())})
