# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the pages of the demo call, without a browser. Without gradio it is skipped."""

import asyncio
import json
import runpy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from omni import img2img_from
from serving_helpers import photo, same, seeded

from lumina_mgpt_diffusers import CHAMELEON
from lumina_mgpt_diffusers.serving import EngineHost, QueueFullError


gradio = pytest.importorskip("gradio")

from lumina_mgpt_diffusers.serving.demo import app, build_demo  # noqa: E402
from lumina_mgpt_diffusers.serving.demo.chat_tab import Conversation  # noqa: E402
from lumina_mgpt_diffusers.serving.demo.history import History  # noqa: E402


SPACE = Path(__file__).parents[1] / "examples" / "space" / "app.py"


@pytest.fixture(scope="module")
def host(trained_pipe):
    with EngineHost(trained_pipe, max_slots=8, num_draft_tokens=0) as host:
        yield host


def call(demo: gradio.Blocks, name: str, *arguments) -> list[tuple]:
    """What a function of the page yields."""
    (function,) = [own.fn for own in demo.fns.values() if own.api_name == name]

    async def values() -> list[tuple]:
        return [value async for value in function(*arguments)]

    # In a thread of its own, since playwright may run an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(values())).result()


@pytest.mark.slow
def test_of_two_panels_the_result_is_shown(pipe_2):
    history = History()
    with EngineHost(pipe_2, num_draft_tokens=0) as host:
        values = call(build_demo(host), "run_task", photo(), "depth", "a cat", 3, False, history, *[None] * 5)
    assert all(before.size == after.size == (96, 96) for (before, after), *_ in values) and len(values) > 3
    expected = img2img_from(pipe_2)("a cat", photo(), "depth", generator=seeded(3), result_only=True).images[0]
    (before, after), path, text, *_ = values[-1]
    assert same(after, expected) and same(PIL.Image.open(path), expected) and same(before, photo())
    settings = json.loads(text)
    assert settings["result_only"] and settings["height"] == 192
    assert [result.path for result in history.results] == [path]


def test_a_chat_goes_on_after_the_queue_was_full(host, monkeypatch):
    def refuse(*args, **kwargs):
        raise QueueFullError(1.0)

    demo, state = build_demo(host), Conversation()
    arguments = ({"text": "Hello, who are you?", "files": []}, state, 30, 0.0, None, 0, False, History())
    with monkeypatch.context() as patch, pytest.raises(gradio.Error, match="Too many requests"):
        patch.setattr(host, "start", refuse)
        call(demo, "chat", *arguments)
    call(demo, "chat", *arguments)
    assert [message["role"] for message in state.messages] == ["user", "assistant"]
    assert state.messages[-1]["content"]


def test_images_of_a_chat_say_how_they_were_made(host):
    history, asked = History(), "Tell a story with two pictures."
    arguments = ({"text": asked, "files": []}, Conversation(), 200, 0.0, 1.0, 5, False, history)
    values = call(build_demo(host), "chat", *arguments)
    paths = [own["content"]["path"] for own in values[-1][0] if isinstance(own["content"], dict)]
    assert len(paths) == 2 and [result.path for result in history.results] == paths[::-1]
    assert values[-1][-1] is history
    expected = {"prompt": asked, "seed": 5, "max_new_tokens": 200, "text_temperature": 0.0, "guidance_scale": 1.0}
    for result in history.results:
        image = PIL.Image.open(result.path)
        assert result.settings == {**expected, "height": image.height, "width": image.width}
        assert result.settings.items() <= json.loads(image.text["parameters"]).items()


@pytest.mark.parametrize("has_tasks", [True, False])
def test_tabs(host, monkeypatch, has_tasks):
    """Chameleon and Anole have no tasks."""
    assert not CHAMELEON.tasks
    if not has_tasks:
        monkeypatch.setattr(type(host.pipe), "family", replace(host.pipe.family, tasks={}))
    tabs = [block.label for block in build_demo(host).blocks.values() if isinstance(block, gradio.Tab)]
    assert tabs == ["Image", *(["Tasks"] if has_tasks else []), "Inpaint", "Chat", "History"]


def test_the_space(monkeypatch, saved_folder, random_pipe):
    monkeypatch.setenv("MODEL", str(saved_folder))
    monkeypatch.setenv("SECONDS_PER_CODE", "2")  # so slow that not all sizes can be had
    space = runpy.run_path(str(SPACE))
    assert isinstance(space["demo"], gradio.Blocks)
    height, width = space["size_of"]("1:1", 96, 16)
    assert (height, width) == (64, 64) and space["size_of"]("9:16", 768, 16) == (96, 32)
    *grown, (image, seed) = space["generate"]("a cat", "1:1", 5, False)
    assert seed == 5 and same(image, random_pipe("a cat", height=64, width=64, generator=seeded(5)).images[0])
    assert space["seconds_for"]("a cat", "1:1", 5, False) <= 60


def test_a_space_with_a_gpu_of_its_own(monkeypatch, saved_folder):
    launched = {}
    monkeypatch.setenv("MODEL", str(saved_folder))
    monkeypatch.setenv("DEDICATED", "1")
    monkeypatch.setattr(gradio.Blocks, "launch", lambda demo, **options: launched.update(options) or (None, "", ""))
    hosts = []
    init = EngineHost.__init__
    monkeypatch.setattr(EngineHost, "__init__", lambda host, *args: hosts.append(host) or init(host, *args))
    runpy.run_path(str(SPACE), run_name="__main__")
    hosts[0].close()
    assert launched["css"] == app.CSS and launched["theme"] and launched["server_name"] == "0.0.0.0"
