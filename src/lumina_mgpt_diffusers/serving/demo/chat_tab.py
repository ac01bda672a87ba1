# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A conversation with images in and out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import PIL.Image
import torch

from ...lumina_mgpt import ImagePart, TextPart
from ...lumina_mgpt.row import SampledText
from ..host import EngineHost
from ..job import HostClosedError, Job, RowsDone, Sampled, StepError
from .controls import seed_controls, seed_of
from .history import History, save_result
from .sampling import start


EXAMPLE = "Generate an image of {0}x{0} according to the following prompt:\na red fox in the snow"

# Rows of codes between two views of an image that grows.
EVERY = 4


class Conversation:
    """
    What was said, for the model and for the page. It is no dataclass, of which gradio would make a dictionary.

    Attributes:
        messages (`list[dict]`): For the model, the images of answers as their exact codes.
        shown (`list[dict]`): For the page, a message for each piece of text and each image.
    """

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.shown: list[dict[str, Any]] = []

    def ask(self, text: str, paths: list[str]) -> None:
        content: list[dict[str, Any]] = []
        for path in paths:
            with PIL.Image.open(path) as image:
                content += [
                    {"type": "image", "image": image.convert("RGBA" if image.has_transparency_data else "RGB")}
                ]
            self.shown.append({"role": "user", "content": {"path": path}})
        if text:
            content.append({"type": "text", "text": text})
            self.shown.append({"role": "user", "content": text})
        self.messages.append({"role": "user", "content": content})

    def begin_answer(self) -> None:
        self.messages.append({"role": "assistant", "content": []})

    def add(self, part: TextPart | ImagePart, shown: Any) -> None:
        """Go on with the answer by text, or by an image that is shown as a file."""
        content = self.messages[-1]["content"]
        if isinstance(part, TextPart) and content and isinstance(content[-1], TextPart):
            content[-1] = TextPart(content[-1].text + part.text)
            self.shown[-1] = {"role": "assistant", "content": content[-1].text}
        elif isinstance(part, TextPart) or part.is_complete:
            content.append(part)
            self.shown.append({"role": "assistant", "content": shown})


def add_chat_tab(host: EngineHost, history: gr.State) -> Any:
    """Add the tab. Gives the event of its box."""
    base_size = host.pipe.scheduler.config.resolution
    with gr.Tab("Chat", id="chat-tab"):
        state = gr.State(Conversation)
        chatbot = gr.Chatbot(label="Conversation", height=480, elem_id="chat", feedback_options=None, buttons=["copy"])
        box = gr.MultimodalTextbox(
            placeholder="Say something, with images if you like",
            show_label=False,
            file_types=["image"],
            file_count="multiple",
            stop_btn=True,
            elem_id="chat-box",
        )
        with gr.Row():
            new = gr.Button("New conversation", min_width=120)
            example = gr.Button("Example", min_width=120)
        with gr.Accordion("Settings", open=False):
            most = gr.Slider(16, 10240, 2500, step=1, label="Longest answer in tokens", elem_id="chat-tokens")
            with gr.Row():
                temperature = gr.Slider(0, 2, 1, step=0.05, label="Temperature of text", min_width=120)
                guidance = gr.Number(None, label="Guidance scale of images", min_width=120)
            seed, is_random = seed_controls()

    async def answer(
        said: dict[str, Any],
        state: Conversation,
        most: int,
        temperature: float,
        guidance: float | None,
        seed: float | None,
        is_random: bool,
        history: History,
    ) -> AsyncIterator[tuple]:
        if not (said["text"] or said["files"]):
            raise gr.Error("Say something first.", print_exception=False)
        if state.messages and state.messages[-1]["content"] == []:
            state.messages = state.messages[:-2]  # a turn that was left without an answer
        try:
            state.ask(said["text"], [own if isinstance(own, str) else own["path"] for own in said["files"]])
        except OSError as error:
            raise gr.Error("This image cannot be read.", print_exception=False) from error
        chosen, messages = seed_of(seed, is_random), list(state.messages)
        own = {"max_new_tokens": int(most), "text_temperature": temperature, "guidance_scale": guidance}
        state.begin_answer()
        job = start(
            host,
            "chat",
            every=EVERY,
            messages=messages,
            generator=torch.Generator().manual_seed(chosen),
            **own,
        )
        yield state.shown, state, None, chosen, history
        settings = {"prompt": said["text"], "seed": chosen, **own}
        try:
            async for part, shown in _parts(host, job, settings, history, chatbot.GRADIO_CACHE):
                if part is None:  # an image that grows
                    growing = {"role": "assistant", "content": shown}
                    yield [*state.shown, growing], gr.skip(), gr.skip(), gr.skip(), gr.skip()
                    continue
                state.add(part, shown)
                yield state.shown, state, gr.skip(), gr.skip(), history
        except (ValueError, StepError, HostClosedError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        finally:
            job.cancel()

    running = box.submit(
        answer,
        [box, state, most, temperature, guidance, seed, is_random, history],
        [chatbot, state, box, seed, history],
        concurrency_limit=None,
        show_progress="hidden",
        api_name="chat",
    )
    box.stop(None, cancels=[running], api_visibility="private")
    new.click(
        lambda: ([], Conversation()),
        None,
        [chatbot, state],
        cancels=[running],
        show_progress="hidden",
        api_visibility="private",
    )
    chatbot.clear(Conversation, None, state, cancels=[running], show_progress="hidden", api_visibility="private")
    example.click(lambda: {"text": EXAMPLE.format(base_size), "files": []}, None, box, api_visibility="private")
    return running


async def _parts(
    host: EngineHost, job: Job, settings: dict[str, Any], history: History, folder: str
) -> AsyncIterator[tuple[TextPart | ImagePart | None, Any]]:
    """
    The parts of an answer with what the page shows of them, and images that grow, which are no parts yet.

    Images that are finished go into the history, with their size and the settings of the answer.
    """
    reader = host.pipe.answer_reader()
    async for event in job:
        if isinstance(event, RowsDone):
            image = await asyncio.wrap_future(host.decode(event.codes))
            yield None, gr.Image(image, show_label=False, format="png")
        elif isinstance(event, Sampled) and isinstance(event.piece, SampledText):
            for part in reader.read(event.piece):
                yield part, part.text
        elif isinstance(event, Sampled):
            for part in await asyncio.wrap_future(host.run(_all, reader, event.piece)):
                if isinstance(part, TextPart):
                    yield part, part.text
                elif part.image is not None:
                    size = {"height": part.image.height, "width": part.image.width}
                    result = save_result(host, part.image, {**settings, **size}, folder)
                    if part.is_complete:
                        history.add(result)
                    yield part, {"path": result.path}
    for part in reader.rest():
        yield part, part.text


def _all(reader: Any, piece: Any) -> list[TextPart | ImagePart]:
    return list(reader.read(piece))
