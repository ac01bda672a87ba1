# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The demo in a real browser: Debian's chromium, driven by playwright. Without these, or without gradio, it is skipped.

`LUMINA_MGPT_SCREENSHOTS` names a folder for pictures of the pages.
"""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from serving_helpers import photo, same, seeded

from lumina_mgpt_diffusers import LuminaMGPTImg2ImgPipeline, LuminaMGPTInpaintPipeline
from lumina_mgpt_diffusers.serving import EngineHost


pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]


@pytest.fixture(scope="module")
def host(trained_pipe):
    with EngineHost(trained_pipe, max_slots=8, num_draft_tokens=0) as host:
        yield host


@pytest.fixture(scope="module")
def url(host):
    from lumina_mgpt_diffusers.serving.demo import build_demo, launch

    demo = build_demo(host, "Tiny")
    yield launch(demo, port=0, block=False)
    demo.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as own:
        browser = own.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def slow_steps(monkeypatch, trained_pipe):
    """Steps that take so many `seconds` at least, so that rows can be watched as they grow."""
    forward, pace = type(trained_pipe.transformer).forward, SimpleNamespace(seconds=0.05)

    def wait(self, *args, **kwargs):
        time.sleep(pace.seconds)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(trained_pipe.transformer), "forward", wait)
    return pace


def shoot(page, name: str) -> None:
    folder = os.environ.get("LUMINA_MGPT_SCREENSHOTS")
    if folder:
        page.evaluate("window.scrollTo(0, 0)")
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=False)


@pytest.fixture
def open_page(browser, url):
    pages = []

    def open_one(width: int = 1280, height: int = 900):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        page = context.new_page()
        page.set_default_timeout(30_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.locator("#prompt textarea").wait_for()
        pages.append((context, errors))
        return page

    yield open_one
    for context, errors in pages:
        context.close()
        assert not errors


def text_of(page, element: str) -> str:
    """What the editor of an element holds, which is only there when there is something."""
    editor = page.locator(f"{element} .cm-content")
    return editor.inner_text().strip() if editor.count() else ""


def settings_of(page, element: str) -> dict:
    end = time.monotonic() + 60
    while not (text := text_of(page, element)):
        assert time.monotonic() < end
        time.sleep(0.1)
    return json.loads(text)


def set_seed(page, seed: int) -> None:
    page.get_by_label("Another seed every time").locator("visible=true").first.uncheck()
    page.locator("input[aria-label='Seed']").locator("visible=true").first.fill(str(seed))


def test_an_image_grows_and_is_that_of_a_plain_call(open_page, trained_pipe, slow_steps, tmp_path):
    page = open_page()
    page.locator("#prompt textarea").fill("a cat")
    set_seed(page, 7)
    page.locator("#sizes button.thumbnail-lg").nth(0).click()
    page.get_by_text("96 × 96").wait_for()
    page.locator("#generate").click()
    sources = set()
    end = time.monotonic() + 60
    while time.monotonic() < end and not text_of(page, "#settings"):
        images = page.locator("#images img")
        if images.count():
            sources.add(images.first.get_attribute("src"))
            if len(sources) == 3:
                shoot(page, "growing")
        time.sleep(0.02)
    assert len(sources) >= 3
    settings = settings_of(page, "#settings")
    assert settings == {"prompt": "a cat", "height": 96, "width": 96, "seed": 7}
    shoot(page, "image")

    page.locator("#images button.thumbnail-lg").first.click()
    with page.expect_download() as download:
        page.locator("#images").get_by_label("Download").first.click()
    path = tmp_path / "image.png"
    download.value.save_as(path)
    image = PIL.Image.open(path)
    assert json.loads(image.text["parameters"])["seed"] == 7
    assert same(image, trained_pipe("a cat", generator=seeded(7)).images[0])


def test_cancelling_frees_the_rows(open_page, host, slow_steps):
    page = open_page()
    page.locator("#prompt textarea").fill("a cat")
    page.locator("#generate").click()
    page.locator("#images img").first.wait_for()
    before = host.counts.num_cancelled
    page.locator("#cancel").click()
    end = time.monotonic() + 2
    while host._held:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert host.counts.num_cancelled == before + 1
    # And it goes on
    page.locator("#generate").click()
    assert settings_of(page, "#settings")["prompt"] == "a cat"


def test_a_visitor_who_closes_the_page_frees_the_rows(open_page, host, slow_steps):
    page = open_page()
    page.locator("#prompt textarea").fill("a cat")
    page.locator("#generate").click()
    page.locator("#images img").first.wait_for()
    page.close()
    end = time.monotonic() + 5
    while host._held:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_visitors_share_the_batch(open_page, host, slow_steps):
    pages = [open_page() for _ in range(3)]
    slow_steps.seconds = 0.5  # so that the first is not finished when the last begins
    for page in pages:
        page.locator("#prompt textarea").fill("a cat")
        page.locator("#generate").click()
    end = time.monotonic() + 60
    while host.counts.num_running < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    slow_steps.seconds = 0.0
    for page in pages:
        assert settings_of(page, "#settings")


def test_what_is_wrong_is_said(open_page):
    page = open_page()
    page.locator("#prompt textarea").fill("a cat")
    page.get_by_text("Sampler", exact=True).first.click()
    page.locator("#sampler-temperature input").first.fill("-1")
    page.locator("#generate").click()
    page.get_by_text("`temperature`").first.wait_for()


def test_a_task_before_and_after(open_page, trained_pipe, tmp_path):
    photo().save(tmp_path / "photo.png")
    page = open_page()
    page.get_by_role("tab", name="Tasks").click()
    page.locator("#input input[type=file]").set_input_files(tmp_path / "photo.png")
    page.locator("#input img").wait_for()
    page.locator("#task input").click()
    page.get_by_role("option", name="depth").click()
    page.locator("#task-prompt").wait_for(state="hidden")
    set_seed(page, 3)
    page.locator("#run").click()
    settings = settings_of(page, "#task-settings")
    assert settings["task"] == "depth" and settings["seed"] == 3
    assert page.locator("#task-slider img").count() == 2
    page.locator("#task-slider img").last.wait_for()
    shoot(page, "task")
    with page.expect_download() as download:
        page.locator("#task-result").get_by_label("Download").first.click()
    download.value.save_as(tmp_path / "depth.png")
    pipe = LuminaMGPTImg2ImgPipeline.from_pipe(trained_pipe)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(image=photo(), task="depth", generator=seeded(3)).images[0]
    assert same(PIL.Image.open(tmp_path / "depth.png"), expected)
    page.get_by_role("tab", name="History").click()
    page.locator("#history img").first.wait_for()
    shoot(page, "history")


def test_inpainting(open_page, host, trained_pipe, tmp_path, monkeypatch):
    started = []
    start = host.start
    monkeypatch.setattr(host, "start", lambda *args, **kwargs: started.append(kwargs) or start(*args, **kwargs))
    photo().save(tmp_path / "photo.png")
    page = open_page()
    page.get_by_role("tab", name="Inpaint").click()
    page.locator("#inpaint-prompt textarea").fill("a cat")
    page.locator("#inpaint-run").click()
    page.get_by_text("Give it an image first.").wait_for()
    page.locator("#canvas input[type=file]").first.set_input_files(tmp_path / "photo.png")
    page.locator("#canvas canvas").first.wait_for()
    page.wait_for_timeout(1000)
    page.locator("#inpaint-run").click()
    page.get_by_text("Paint over what is to be made anew first.").wait_for()
    box = page.locator("#canvas canvas").first.bounding_box()
    middle, side = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2), 20
    page.mouse.move(middle[0] - side, middle[1])
    page.mouse.down()
    page.mouse.move(middle[0] + side, middle[1], steps=8)
    page.mouse.up()
    set_seed(page, 4)
    shoot(page, "inpaint-mask")
    page.locator("#inpaint-run").click()
    settings = settings_of(page, "#inpaint-settings")
    assert settings == {"task": "inpaint", "prompt": "a cat", "height": 96, "width": 96, "seed": 4}
    assert page.locator("#inpaint-slider img").count() == 2
    page.locator("#inpaint-result img").wait_for()
    shoot(page, "inpaint")
    (own,) = started
    assert same(own["image"].convert("RGB"), photo())
    painted = np.asarray(own["mask_image"]) >= 128
    assert painted[48, 48] and 0 < painted.mean() < 0.9
    with page.expect_download() as download:
        page.locator("#inpaint-result").get_by_label("Download").first.click()
    download.value.save_as(tmp_path / "inpainted.png")
    pipe = LuminaMGPTInpaintPipeline.from_pipe(trained_pipe)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe("a cat", photo(), own["mask_image"], generator=seeded(4)).images[0]
    assert same(PIL.Image.open(tmp_path / "inpainted.png"), expected)


def test_a_chat_with_images_in_and_out(open_page, tmp_path):
    photo().save(tmp_path / "photo.png")
    page = open_page()
    page.get_by_role("tab", name="Chat").click()
    page.locator("#chat-box textarea").fill("Tell a story with two pictures.")
    page.locator("#chat-box textarea").press("Enter")
    page.locator("#chat img").first.wait_for()
    end = time.monotonic() + 60
    while page.locator("#chat .bot img").count() < 1:
        assert time.monotonic() < end
        time.sleep(0.1)
    page.locator("#chat-box .submit-button").wait_for()
    shoot(page, "chat")
    before = page.locator("#chat .user").count()
    page.locator("#chat-box input[type=file]").set_input_files(tmp_path / "photo.png")
    page.locator("#chat-box img").wait_for()
    page.locator("#chat-box textarea").fill("What is this?")
    page.locator("#chat-box textarea").press("Enter")
    while page.locator("#chat .user").count() <= before:
        assert time.monotonic() < end
        time.sleep(0.1)
    page.locator("#chat-box .submit-button").wait_for()


@pytest.mark.parametrize("tab", ["Image", "Tasks", "Inpaint", "Chat", "History"])
def test_the_width_of_a_phone(open_page, tab):
    page = open_page(390, 844)
    page.get_by_role("tab", name=tab).click()
    page.wait_for_timeout(300)
    tabs = page.get_by_role("tab").locator("visible=true").all_inner_texts()
    assert [one.strip() for one in tabs] == ["Image", "Tasks", "Inpaint", "Chat", "History"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shoot(page, f"phone-{tab.lower()}")


def top_of(page, element: str) -> float:
    return page.locator(element).bounding_box()["y"]


def test_where_things_are(open_page):
    page = open_page()
    assert page.locator("#sizes").bounding_box()["height"] < 250
    assert top_of(page, "#images") < top_of(page, "#generate") < top_of(page, "#sizes")
    page = open_page(390, 844)
    assert top_of(page, "#generate") < top_of(page, "#images") < top_of(page, "#sizes")
    assert page.locator("#settings").bounding_box()["height"] < 120
    for tab, name in (("Tasks", "task"), ("Inpaint", "inpaint")):
        page.get_by_role("tab", name=tab).click()
        page.locator(f"#{name}-slider").wait_for()
        run = "#run" if name == "task" else "#inpaint-run"
        seed = page.locator("input[aria-label='Seed']").locator("visible=true").first.bounding_box()["y"]
        assert top_of(page, run) < top_of(page, f"#{name}-slider") < seed
