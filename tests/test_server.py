# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The server as programs see it that were written for OpenAI's."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import openai
import PIL.Image
import pytest
import torch
from serving_helpers import from_base64, photo, running_server, same, seeded, to_png, to_url

from lumina_mgpt_diffusers import (
    LuminaMGPTChatPipeline,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTInpaintPipeline,
)
from lumina_mgpt_diffusers.serving import RowsDone
from lumina_mgpt_diffusers.serving.images_api import num_previews
from lumina_mgpt_diffusers.serving.limits import ServerLimits
from lumina_mgpt_diffusers.serving.server import build_app


@pytest.fixture(scope="module")
def server(trained_pipe):
    with running_server(trained_pipe) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def of_class(pipeline_class, pipe):
    own = pipeline_class.from_pipe(pipe)
    own.set_progress_bar_config(disable=True)
    return own


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def idle(server) -> bool:
    return not server.host._held and not server.host._jobs.answers


# Images from text


def test_images_are_those_of_a_plain_call(client, trained_pipe):
    answer = client.images.generate(
        model="tiny", prompt="a cat", n=2, size="64x96", extra_body={"seed": 5, "top_k": 50, "guidance_scale": 3}
    )
    expected = trained_pipe(
        ["a cat"] * 2, height=96, width=64, generator=[seeded(5), seeded(6)], top_k=50, guidance_scale=3.0
    ).images
    images = [from_base64(one.b64_json) for one in answer.data]
    assert all(map(same, images, expected)) and len(images) == 2
    assert (
        answer.usage.output_tokens == 2 * trained_pipe.image_vocabulary.num_tokens(96, 64) and answer.size == "64x96"
    )
    settings = json.loads(images[1].text["parameters"])
    assert (settings["prompt"], settings["seed"], settings["top_k"]) == ("a cat", 6, 50)
    assert settings["sampler"]["resolution"] == 96


def test_defaults_and_a_seed_to_repeat_it(client, server):
    answer = client.images.generate(prompt="a cat", response_format="url", quality="auto", user="someone")
    assert answer.data[0].url.startswith("data:image/png;base64,")
    again = client.images.generate(prompt="a cat", extra_body={"seed": answer.seed})
    assert again.data[0].b64_json == answer.data[0].url.partition(",")[2]
    assert from_base64(again.data[0].b64_json).size == (96, 96)
    other = client.images.generate(prompt="a cat", output_format="jpeg", size="32x32")
    assert from_base64(other.data[0].b64_json).format == "JPEG"


def test_rows_come_as_partial_images(client, trained_pipe):
    stream = client.images.generate(
        prompt="a cat", size="96x96", stream=True, partial_images=3, n=2, extra_body={"seed": 1}
    )
    events = list(stream)
    plain = client.images.generate(prompt="a cat", size="96x96", n=2, extra_body={"seed": 1})
    for index in range(2):
        own = [event for event in events if event.image_index == index]
        partial, completed = own[:-1], own[-1]
        assert completed.type == "image_generation.completed" and completed.b64_json == plain.data[index].b64_json
        assert completed.usage.output_tokens == trained_pipe.image_vocabulary.num_tokens(96, 96)
        assert partial and all(event.type == "image_generation.partial_image" for event in partial)
        assert [event.partial_image_index for event in partial] == list(range(len(partial))) and len(partial) <= 3
        assert from_base64(partial[0].b64_json).size == (96, 96)
        assert partial[0].b64_json != completed.b64_json


# Images from images


def test_editing(client, trained_pipe):
    answer = client.images.edit(image=to_png(photo()), prompt="Make it night.", extra_body={"seed": 2})
    expected = of_class(LuminaMGPTImg2ImgPipeline, trained_pipe)(
        "Make it night.", image=photo(), generator=seeded(2)
    ).images[0]
    assert same(from_base64(answer.data[0].b64_json), expected)


@pytest.mark.parametrize(
    "task, prompt", [("depth", ""), ("segmentation", "ignored"), ("detection", "cat"), ("control", "a cat")]
)
def test_tasks(client, trained_pipe, task, prompt):
    extra = {"seed": 3, "task": task, "size": "free"}
    answer = client.images.edit(image=[to_png(photo("rgb_128x64_wh"))], prompt=prompt, extra_body=extra)
    expected = of_class(LuminaMGPTImg2ImgPipeline, trained_pipe)(
        prompt if task in ("detection", "control") else None,
        image=photo("rgb_128x64_wh"),
        task=task,
        size="free",
        generator=seeded(3),
    ).images[0]
    assert same(from_base64(answer.data[0].b64_json), expected)


def test_of_two_panels_both_or_the_result_alone(pipe_2):
    def edit(**extra):
        answer = client.images.edit(image=to_png(photo()), prompt="a cat", extra_body={"seed": 3, **extra})
        return answer, from_base64(answer.data[0].b64_json)

    expected = of_class(LuminaMGPTImg2ImgPipeline, pipe_2)("a cat", photo(), "depth", generator=seeded(3)).images[0]
    with running_server(pipe_2) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        assert same(edit(task="depth")[1], expected)
        answer, result = edit(task="depth", result_only=True)
        assert same(result, expected.crop((0, 96, 96, 192))) and answer.size == "96x96"
        settings = json.loads(result.text["parameters"])
        assert (settings["height"], settings["width"], settings["result_only"]) == (192, 96, True)
        body = {"seed": 3, "task": "depth", "result_only": "true"}
        stream = client.images.edit(
            image=to_png(photo()), prompt="a cat", stream=True, partial_images=3, extra_body=body
        )
        *partial, completed = list(stream)
        assert 1 <= len(partial) <= 3  # fewer where one step ends several rows
        assert {event.size for event in [*partial, completed]} == {"96x96"}
        assert completed.b64_json == answer.data[0].b64_json
        with pytest.raises(openai.BadRequestError, match="valid boolean"):
            edit(task="depth", result_only="maybe")
        with pytest.raises(openai.BadRequestError, match="mask: goes with one image, without a task, its result_only"):
            client.images.edit(
                image=to_png(photo()), mask=to_png(photo()), prompt="", extra_body={"result_only": True}
            )


def test_a_task_without_panels_has_no_result_alone(client):
    with pytest.raises(openai.BadRequestError, match="No task of this model has") as error:
        client.images.edit(image=to_png(photo()), prompt="", extra_body={"task": "depth", "result_only": True})
    assert error.value.param == "result_only"


def test_tasks_that_are_not_there(client, server, monkeypatch):
    def edit():
        with pytest.raises(openai.BadRequestError) as error:
            client.images.edit(image=to_png(photo()), prompt="", extra_body={"task": "colour"})
        return error.value.body["message"]

    assert edit().startswith("task: has to be one of edit, depth, ")
    without = replace(server.host.pipe.family, tasks={})
    monkeypatch.setattr(type(server.host.pipe), "family", without)
    assert edit() == "task: this model has no tasks."


@pytest.mark.parametrize("num_given", [0, 8])
def test_previews_are_equal_numbers_of_sampled_rows_apart(num_given):
    codes = torch.zeros(num_given + 8, 8)
    due = [num_previews(RowsDone(0, codes, num_given + number, num_given), 3) for number in range(1, 9)]
    assert due == [0, 1, 1, 2, 2, 3, 3, 3]


def test_several_images_and_a_stream_of_edits(client, trained_pipe):
    prompt = "Merge <|image|> and <|image|>"
    files = [to_png(photo()), to_png(photo("rgb_128x64_wh"))]
    events = list(
        client.images.edit(
            image=files, prompt=prompt, size="32x64", stream=True, partial_images=1, extra_body={"seed": 4}
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    expected = of_class(LuminaMGPTImg2ImgPipeline, trained_pipe)(
        prompt, image=[[photo(), photo("rgb_128x64_wh")]], height=64, width=32, generator=seeded(4)
    ).images[0]
    assert same(from_base64(events[-1].b64_json), expected)


def test_inpainting_where_the_mask_is_transparent(client, trained_pipe):
    white = PIL.Image.new("L", (96, 96))
    white.paste(255, (0, 48, 96, 96))
    mask = photo().convert("RGBA")
    mask.putalpha(white.point(lambda value: 255 - value))
    expected = of_class(LuminaMGPTInpaintPipeline, trained_pipe)("a cat", photo(), white, generator=seeded(6)).images[
        0
    ]
    for own in (mask, white):
        answer = client.images.edit(image=to_png(photo()), mask=to_png(own), prompt="a cat", extra_body={"seed": 6})
        assert same(from_base64(answer.data[0].b64_json), expected)


# Chat


def chat(trained_pipe, messages, seed, **settings):
    return of_class(LuminaMGPTChatPipeline, trained_pipe)(messages, generator=seeded(seed), **settings)


def test_chat_with_images_in_the_answer(client, trained_pipe):
    question = "Tell a story with two pictures."
    settings = {"max_tokens": 60, "seed": 4, "extra_body": {"text_top_k": 3}}
    messages = [{"role": "user", "content": question}]
    answer = client.chat.completions.create(model="tiny", messages=messages, **settings)
    expected = chat(trained_pipe, question, 4, max_new_tokens=60, text_top_k=3)
    (choice,) = answer.choices
    texts = "".join(part.text for part in expected.parts if hasattr(part, "text"))
    assert (choice.message.content, choice.finish_reason) == (texts, expected.finish_reason)
    assert answer.usage.completion_tokens == len(expected.token_ids)
    images = choice.message.images
    assert len(images) == len(expected.images) >= 1
    for image, other in zip(images, expected.images):
        assert same(from_base64(image["image_url"]["url"].partition(",")[2]), other)

    text, streamed, chunks = (
        "",
        [],
        list(
            client.chat.completions.create(
                model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}, **settings
            )
        ),
    )
    for chunk in chunks:
        for choice_ in chunk.choices:
            text += choice_.delta.content or ""
            streamed += getattr(choice_.delta, "images", None) or []
    assert (text, streamed) == (texts, images)
    assert [chunk.choices[0].delta.role for chunk in chunks[:-1]] == ["assistant"] + [None] * (len(chunks) - 2)
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert chunks[-1].usage == answer.usage

    # And back as it came
    again = [*messages, choice.message.model_dump(exclude_none=True), {"role": "user", "content": "Go on."}]
    assert client.chat.completions.create(model="tiny", messages=again, **settings).choices


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_with_a_chat_has_a_status(client, stream):
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.BadRequestError, match="`text_temperature`"):
        client.chat.completions.create(model="tiny", messages=messages, temperature=-1, stream=stream)


def test_chat_with_images_and_a_system_prompt(client, trained_pipe):
    content = [
        {"type": "text", "text": "What is "},
        {"type": "image_url", "image_url": {"url": to_url(photo())}},
        {"type": "text", "text": "?"},
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_completion_tokens=20)
    own = [
        {"type": "text", "text": "Be brief.\n"},
        {"type": "text", "text": "What is "},
        {"type": "image", "image": photo()},
        {"type": "text", "text": "?"},
    ]
    expected = chat(
        trained_pipe, [{"role": "user", "content": own}], answer.seed, max_new_tokens=20, text_temperature=0.0
    )
    message = answer.choices[0].message
    assert message.content == expected.text.replace("<|image|>", "")
    assert answer.usage.completion_tokens == len(expected.token_ids)
    urls = [image["image_url"]["url"] for image in getattr(message, "images", [])]
    assert all(same(from_base64(url.partition(",")[2]), own) for url, own in zip(urls, expected.images, strict=True))


# Around


def test_models_health_and_metrics(client, server):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError) as error:
        client.images.generate(model="dall-e-3", prompt="a cat")
    assert error.value.code == "model_not_found"
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'lumina_mgpt_requests_total{route="/v1/images/generations",status="200"}' in metrics
    assert "lumina_mgpt_codes_total" in metrics and "lumina_mgpt_first_row_seconds_bucket" in metrics


def test_requests_of_all_kinds_at_once(client):
    def one(index: int) -> str:
        extra = {"seed": index}
        if index % 3 == 0:
            return client.images.generate(prompt="a cat", size="64x32", extra_body=extra).data[0].b64_json
        if index % 3 == 1:
            answer = client.images.edit(
                image=to_png(photo()), prompt="", size="32x64", extra_body={"task": "depth", **extra}
            )
            return answer.data[0].b64_json
        messages = [{"role": "user", "content": "Hello, who are you?"}]
        return client.chat.completions.create(model="tiny", messages=messages, seed=index, max_tokens=20).choices

    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(one, range(9)))
    assert together == [one(index) for index in range(9)]


def test_a_client_that_leaves_frees_its_rows(server):
    request = {"prompt": "a cat", "size": "96x96", "n": 8}
    for stream in (False, True):
        before = server.host.counts.num_cancelled
        body = json.dumps({**request, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(
                b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            wait_until(lambda: server.host.counts.num_running >= 3)
        wait_until(lambda: idle(server) and server.host.counts.num_cancelled > before)


def test_a_stream_that_is_closed_early_frees_its_rows(client, server):
    stream = client.images.generate(prompt="a cat", n=8, stream=True, partial_images=3)
    next(iter(stream))
    stream.close()
    wait_until(lambda: idle(server), 5)


def test_a_full_queue(trained_pipe):
    limits = ServerLimits(request_seconds=60)
    with running_server(trained_pipe, limits, {"max_slots": 2, "max_waiting": 2}) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        def one(seed: int) -> str:
            try:
                return client.images.generate(prompt="a cat", extra_body={"seed": seed}).data[0].b64_json
            except openai.RateLimitError as error:
                assert error.code == "queue_full" and int(error.response.headers["retry-after"]) >= 1
                return ""

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(one, range(12)))
        assert "" in answers and any(answers)


def test_time_is_limited(trained_pipe):
    with running_server(trained_pipe, ServerLimits(request_seconds=0.05)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError) as error:
            client.images.generate(prompt="a cat", n=8)
        assert error.value.code == "timeout" and error.value.status_code == 504
        wait_until(lambda: idle(server))


def test_most_pixels_hold_where_no_size_is_given(trained_pipe):
    most = 64 * 64  # less than the base size squared
    with running_server(trained_pipe, ServerLimits(max_pixels=most)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        image = to_png(photo())
        for request in (
            lambda: client.images.generate(prompt="a cat"),
            lambda: client.images.edit(image=image, prompt="Make it night."),
            lambda: client.images.edit(image=image, mask=to_png(PIL.Image.new("L", (96, 96), 255)), prompt="a cat"),
        ):
            with pytest.raises(openai.BadRequestError, match="at most 4096 pixels but|at most 4096 pixels, but"):
                request()
        free = client.images.edit(image=image, prompt="", size="free", extra_body={"task": "depth", "seed": 1})
        messages = [{"role": "user", "content": "Tell a story with two pictures."}]
        told = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=60, seed=4, extra_body={"text_top_k": 3}
        )
        urls = [image["image_url"]["url"] for image in told.choices[0].message.images]
        for data in (free.data[0].b64_json, *(url.partition(",")[2] for url in urls)):
            width, height = from_base64(data).size
            assert width * height <= most


def test_bodies_of_all_together_are_limited(trained_pipe):
    with running_server(trained_pipe, ServerLimits(max_buffered_bytes=1000)) as server:
        url = f"{server.url}/v1/images/generations"
        for _ in range(2):  # what was refused is not counted on
            answer = httpx.post(url, json={"prompt": "a" * 1000})
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "too_many_bytes"
        assert httpx.post(url, json={"prompt": "a" * 800, "size": "32x32"}).status_code == 200


def test_a_server_that_ends_finishes_what_runs(trained_pipe):
    with running_server(trained_pipe) as server, ThreadPoolExecutor() as pool:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        pending = pool.submit(client.images.generate, prompt="a cat", n=4, extra_body={"seed": 1})
        streamed = pool.submit(lambda: list(client.images.generate(prompt="a cat", n=2, stream=True)))
        wait_until(lambda: server.host.counts.num_running >= 3)
        server.server.should_exit = True  # what SIGTERM sets
        assert len(pending.result(60).data) == 4
        assert sum(event.type.endswith("completed") for event in streamed.result(60)) == 2
        wait_until(lambda: not server.host.is_alive)
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_a_key(trained_pipe):
    with running_server(trained_pipe, api_key="sécret") as server:
        for key in ("wrong", "s", "sécret".encode().decode("latin-1")):
            headers = {"Authorization": f"Bearer {key}".encode("latin-1")}
            answer = httpx.get(f"{server.url}/v1/models", headers=headers)
            assert answer.status_code == (200 if key.startswith("sÃ") else 401)
        missing = httpx.post(f"{server.url}/v1/images/generations", json={"prompt": "a cat"})
        assert missing.status_code == 401 and missing.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server.url}/health").status_code == 200
        for page in ("docs", "redoc", "openapi.json"):
            assert httpx.get(f"{server.url}/{page}").status_code == 404


def test_an_empty_key_is_refused(server):
    with pytest.raises(ValueError, match="The key is empty"):
        build_app(server.host, api_key="")


def test_the_engine_that_fails_is_no_fault_of_the_client(trained_pipe, monkeypatch):
    with running_server(trained_pipe) as server:
        forward = type(trained_pipe.transformer).forward

        def fail(self, *args, **kwargs):
            raise RuntimeError("secret of the machine")

        monkeypatch.setattr(type(trained_pipe.transformer), "forward", fail)
        answer = httpx.post(f"{server.url}/v1/images/generations", json={"prompt": "a cat"})
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "engine_error"
        assert "secret" not in answer.text and "Traceback" not in answer.text
        for _ in range(2):
            httpx.post(f"{server.url}/v1/images/generations", json={"prompt": "a cat"})
        assert httpx.get(f"{server.url}/health").status_code == 503
        monkeypatch.setattr(type(trained_pipe.transformer), "forward", forward)
        assert httpx.post(f"{server.url}/v1/images/generations", json={"prompt": "a cat"}).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_slow_reader_holds_up_nobody(server, client):
    body = json.dumps({"prompt": "a cat", "n": 4, "stream": True, "partial_images": 6}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert client.images.generate(prompt="a dog", size="32x32").data
        wait_until(lambda: idle(server))
