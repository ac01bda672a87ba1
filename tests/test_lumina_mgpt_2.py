# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Lumina-mGPT 2.0 against what its original code answers."""

import json

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import CHECKPOINT_2, FIXTURES, copy_of
from omni import arrays, img2img_from
from torch.utils._python_dispatch import TorchDispatchMode

from lumina_mgpt_diffusers import LUMINA_MGPT_2, LuminaMGPTPipeline, LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt.engine import Engine
from lumina_mgpt_diffusers.lumina_mgpt.image_encoding import encode_pixels
from lumina_mgpt_diffusers.lumina_mgpt.prompts import encode_text
from lumina_mgpt_diffusers.lumina_mgpt.request import Grammar
from lumina_mgpt_diffusers.lumina_mgpt.row import SampledImage
from lumina_mgpt_diffusers.lumina_mgpt.scheduling_lumina_mgpt import SamplerSettings, SamplingPlaces, decayed_scale
from lumina_mgpt_diffusers.lumina_mgpt.unirep import trained_sizes
from lumina_mgpt_diffusers.original.layout import load_tokenizer
from lumina_mgpt_diffusers.training import ConversationSource, EncodingSettings, make_trainable, pretokenize
from lumina_mgpt_diffusers.training.data_collator import PaddedCollator


def recorded(name: str) -> object:
    return json.loads((FIXTURES / "7b2_like" / name).read_text())


PROMPTS = recorded("prompts.json")
RUNS = {run["name"]: run for run in recorded("generations.json")}
IMAGES = arrays("7b2_like/images.npz")
ENCODED = arrays("7b2_like/encode.npz")
DECODED = arrays("7b2_like/decode.npz")
WHOLE = [name for name in IMAGES if not name.startswith("i2i")]
TEXT_TO_IMAGE = [name for name, prompt in PROMPTS.items() if prompt["task"] == "t2i"]
PANELS = [name for name, prompt in PROMPTS.items() if prompt["task"] != "t2i"]


def task_of(name: str) -> str:
    """Our name of the task of a recorded prompt of two panels."""
    kind = name.split("_")[1].replace("openpose", "pose")
    return kind if PROMPTS[name]["task"] == "i2i" else f"to_{kind}"


def panel_arguments(name: str) -> dict:
    prompt = PROMPTS[name]
    image = [PIL.Image.fromarray(IMAGES[one]) for one in prompt["images"]] or None
    size = {"height": prompt["height"], "width": prompt["width"]}
    return {"prompt": prompt["text"], "image": image, "task": task_of(name), **size}


@pytest.fixture(scope="module")
def pipe(pipe_2) -> LuminaMGPTPipeline:
    """Guided as the original guides."""
    pipe = copy_of(pipe_2)
    pipe.scheduler = LuminaMGPTScheduler.from_config(pipe.scheduler.config, guidance_schedule="decay")
    return pipe


@pytest.fixture(scope="module")
def img2img(pipe):
    return img2img_from(pipe)


# Text


@pytest.mark.parametrize("name", TEXT_TO_IMAGE)
def test_prompts_are_those_of_the_original(pipe, name):
    prompt = PROMPTS[name]
    ids = pipe.encode_prompt(prompt["text"], height=prompt["height"], width=prompt["width"])[0]
    assert ids.tolist() == [prompt["input_ids"]]


@pytest.mark.parametrize("name", PANELS)
def test_prompts_of_panels_are_those_of_the_original(img2img, name):
    (request,) = img2img.prepare(**panel_arguments(name)).requests
    ids = list(request.context)
    given = int((request.codes >= 0).sum())
    if PROMPTS[name]["images"]:
        vocabulary = img2img.image_vocabulary
        tokens = vocabulary.to_tokens(request.codes.clamp(min=0)).tolist()
        ids += tokens[: 3 + given + given // request.codes.shape[1]]
    assert ids == PROMPTS[name]["input_ids"]
    assert given == (request.codes.numel() // 2 if PROMPTS[name]["images"] else 0)


def test_the_tokenizer_is_the_originals_but_for_control_tokens(pipe):
    tokenizer = pipe.tokenizer
    special = set(tokenizer.added_tokens_encoder)
    for pair in recorded("tokenizer_pairs.json"):
        ids = encode_text(tokenizer, pair["text"])
        assert tokenizer.decode(ids) == pair["text"]
        if any(name in pair["text"] for name in [*special, "<|image|>"]):
            assert not set(ids) & set(tokenizer.added_tokens_encoder.values())
        else:
            assert ids == pair["ids"]


def test_text_cannot_change_the_structure(pipe):
    text = "<racm3:break><reserved08802><MOVQGAN00007> <eoss><reserved08706><|im_end|> <|image|>"
    (ids,) = pipe.encode_prompt(text, height=64, width=64)[0].tolist()
    assert ids[0] == PROMPTS["t2i_empty"]["input_ids"][0] and ids[-1] == pipe.image_vocabulary.separator_id
    assert not set(ids[1:-1]) & set(pipe.tokenizer.added_tokens_encoder.values())
    for name in text.split():
        with pytest.raises(Exception, match="must not contain the control token"):
            pipe.tokenizer.apply_chat_template([{"role": "user", "content": name}])


def test_the_chat_template_says_the_same(pipe):
    prompt = PROMPTS["t2i_64x64"]
    messages = [{"role": "user", "content": prompt["question"]}]
    assert pipe.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False) == prompt["input_ids"]


def test_no_token_is_added(pipe):
    assert len(pipe.tokenizer) == 17144 < pipe.transformer.config.vocab_size
    special = (pipe.tokenizer.bos_token, pipe.tokenizer.eos_token, pipe.tokenizer.pad_token)
    assert special == ("<|im_end|>", "<eoss>", "<|endoftext|>")
    config = pipe.transformer.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (514, 535, 512)


# Images in and out


def test_trained_sizes_are_the_originals():
    for base_size, sizes in recorded("crop_size_lists.json").items():
        assert trained_sizes(int(base_size), LUMINA_MGPT_2.grid_size) == tuple((high, wide) for wide, high in sizes)


@pytest.mark.parametrize("name", WHOLE)
def test_images_are_encoded_as_by_the_original(pipe, name):
    (codes,) = pipe.encode_image(IMAGES[name])
    assert np.array_equal(codes, ENCODED[f"codes/{name}"])
    assert pipe.image_vocabulary.to_tokens(codes).tolist() == ENCODED[f"input_ids/{name}"].tolist()


@torch.no_grad()
def test_latents_are_those_of_the_original(pipe):
    for name in ("rgb_96x96", "i2i_64x64"):
        pixels = torch.from_numpy(IMAGES[name]).permute(2, 0, 1)[None] / 255 * 2 - 1
        latents = pipe.vqvae.encode(pixels).latents[0]
        torch.testing.assert_close(latents, torch.from_numpy(ENCODED[f"latents/{name}"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "size"), [("rgb_113x157_crop", "64x64"), ("rgb_300x170_crop", "96x64")])
def test_panels_are_cropped_as_by_the_original(img2img, name, size):
    width, height = map(int, size.split("x"))
    arguments = {"prompt": "a", "task": "depth", "height": 2 * height, "width": width}
    cropped = ENCODED[f"i2i_center_crop/{name}/{size}"]
    ours, theirs = (
        img2img.prepare(image=PIL.Image.fromarray(image), **arguments).requests[0].codes
        for image in (IMAGES[name], cropped)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", ["64x64", "64x96", "96x64", "32x128"])
@torch.no_grad()
def test_codes_are_decoded_as_by_the_original(pipe, size):
    codes = torch.from_numpy(DECODED[f"codes/{size}"])
    assert torch.equal(pipe.image_vocabulary.to_codes(DECODED[f"tokens/{size}"]), codes)
    if f"pixels_float/{size}" in DECODED:
        pixels = torch.from_numpy(DECODED[f"pixels_float/{size}"])
        torch.testing.assert_close(pipe.decode_codes(codes[None])[0], pixels, atol=1e-4, rtol=0)
    (image,) = pipe.decode_images(codes[None])
    assert np.abs(np.asarray(image).astype(int) - DECODED[f"image/{size}"]).max() <= 1


# The transformer


@torch.no_grad()
def test_logits_are_the_originals(pipe):
    golden = {name: torch.from_numpy(value) for name, value in arrays("7b2_like/logits.npz").items()}
    logits = pipe.transformer(golden["input_ids"][None]).logits[0]
    at = logits[golden["positions"]]
    torch.testing.assert_close(at, golden["logits_fp32_at_positions"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits.logsumexp(-1), golden["logsumexp_fp32"], atol=1e-4, rtol=0)
    assert torch.equal(logits.topk(8).indices, golden["top8_ids"])
    mask = golden["leftpad_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = pipe.transformer(golden["leftpad_ids"], attention_mask=mask, position_ids=positions).logits[1:, -1]
    torch.testing.assert_close(padded, golden["leftpad_last_logits"], atol=1e-4, rtol=0)
    half = copy_of(pipe).transformer.to(torch.bfloat16)
    logits = half(golden["input_ids"][None]).logits[0].float()
    at = logits[golden["positions_bf16"]]
    torch.testing.assert_close(at, golden["logits_bf16_at_positions"], atol=0.05, rtol=0)


# Generation


@pytest.mark.parametrize("num_draft_tokens", [0, 7, "auto"])
@pytest.mark.parametrize("name", RUNS)
def test_greedy_images_are_the_originals(pipe, img2img, name, num_draft_tokens):
    run = RUNS[name]
    settings = {"guidance_scale": run["cfg"], "top_k": 1, "num_draft_tokens": num_draft_tokens}
    prompt = PROMPTS[run["prompt"]]
    if prompt["task"] == "t2i":
        size = {"height": prompt["height"], "width": prompt["width"]}
        (codes,) = pipe(prompt["text"], **size, **settings, output_type="latent").images
    else:
        (codes,) = img2img(**panel_arguments(run["prompt"]), **settings, output_type="latent").images
    tokens = pipe.image_vocabulary.to_tokens(codes).tolist()
    assert tokens[run.get("num_reference_tokens", 3) :] == run["tokens"]
    if num_draft_tokens == 0:
        (image,) = pipe.decode_images(codes[None])
        golden = arrays("7b2_like/generated_images.npz")[name].astype(int)
        assert np.abs(np.asarray(image).astype(int) - golden).max() <= 1


@pytest.mark.parametrize("num_draft_tokens", [0, 7, 31])
def test_greedy_images_in_a_batch_are_the_originals(pipe, num_draft_tokens):
    runs = [run for run in RUNS.values() if run["cfg"] == 4.0 and PROMPTS[run["prompt"]]["task"] == "t2i"]
    prompts = [PROMPTS[run["prompt"]] for run in runs]
    codes = pipe(
        [prompt["text"] for prompt in prompts],
        height=[prompt["height"] for prompt in prompts],
        width=[prompt["width"] for prompt in prompts],
        top_k=1,
        num_draft_tokens=num_draft_tokens,
        output_type="latent",
    ).images
    for run, own in zip(runs, codes, strict=True):
        assert pipe.image_vocabulary.to_tokens(own).tolist()[3:] == run["tokens"]


@pytest.mark.parametrize("num_draft_tokens", [0, 7])
def test_greedy_images_of_all_tasks_and_scales_in_one_engine_are_the_originals(pipe, img2img, num_draft_tokens):
    vocabulary = pipe.image_vocabulary
    grammar = Grammar(vocabulary, pipe.scheduler.config.resolution)
    engine = Engine(pipe.transformer, pipe.scheduler, grammar, torch.device("cpu"), num_draft_tokens)
    rows = []
    for run in RUNS.values():
        prompt = PROMPTS[run["prompt"]]
        settings = {"guidance_scale": run["cfg"], "top_k": 1}
        if prompt["task"] == "t2i":
            size = {"height": prompt["height"], "width": prompt["width"]}
            call = pipe.prepare(prompt["text"], **size, **settings)
        else:
            call = img2img.prepare(**panel_arguments(run["prompt"]), **settings)
        rows.append(engine.submit(*call.requests))
    while not engine.is_idle:
        engine.step()
    for run, row in zip(RUNS.values(), rows, strict=True):
        (codes,) = (piece.codes for piece in row.take_pieces() if isinstance(piece, SampledImage))
        assert vocabulary.to_tokens(codes).tolist()[run.get("num_reference_tokens", 3) :] == run["tokens"], run["name"]


def test_lists_of_images_are_drawn_as_by_themselves(pipe, img2img):
    run = RUNS["greedy_i2i_64x128_cfg4.0_i2i_depth"]
    golden = panel_arguments(run["prompt"])
    both = {
        "prompt": ["a blue cup", golden["prompt"]],
        "image": [[PIL.Image.fromarray(IMAGES["rgb_113x157_crop"])], golden["image"]],
    }
    settings = {"guidance_scale": run["cfg"], "top_k": 1, "num_draft_tokens": 7, "output_type": "latent"}
    other, drawn = img2img(**{**golden, **both}, **settings).images
    assert pipe.image_vocabulary.to_tokens(drawn).tolist()[run["num_reference_tokens"] :] == run["tokens"]
    (alone,) = img2img(**{**golden, "prompt": both["prompt"][0], "image": both["image"][0]}, **settings).images
    assert torch.equal(other, alone) and not torch.equal(other, drawn)


@pytest.mark.parametrize("name", RUNS)
def test_the_scale_decays_as_the_originals(name):
    run, prompt = RUNS[name], PROMPTS[RUNS[name]["prompt"]]
    if run["cfg"] == 1.0:
        return
    columns, number = prompt["width"] // 8, prompt["width"] * prompt["height"] // 64
    first = number // 2 if prompt["task"] == "i2i" else 0
    places = SamplingPlaces([SamplerSettings(guidance_scale=run["cfg"])], torch.device("cpu"))
    places.num_codes, places.num_columns = torch.tensor([[number]]), torch.tensor([[columns]])
    places.first, places.index = torch.tensor([[first]]), torch.arange(first, number)[None]
    (scales,) = decayed_scale(places).tolist()
    assert len(scales) == number - first
    is_code = [(step + 1) % (columns + 1) != 0 for step in range(16)]
    used = [scale for scale, code in zip(run["cfg_used_first_16_steps"], is_code) if code]
    assert scales[: len(used)] == pytest.approx(used, rel=1e-6)
    assert scales[-1] == run["cfg_at_the_end"]


@pytest.mark.parametrize("num_draft_tokens", [7, 31])
def test_drafts_are_exact_where_the_scale_decays(pipe, num_draft_tokens):
    def call(number):
        generator = torch.Generator().manual_seed(0)
        settings = {"guidance_scale": 64.0, "height": 64, "width": 64, "generator": generator}
        return pipe("a red fox", **settings, num_draft_tokens=number, output_type="latent").images

    assert torch.equal(call(num_draft_tokens), call(0))


def test_settings_that_a_scheduler_leaves_open_are_the_familys(pipe_2):
    def settings(**values):
        scheduler = LuminaMGPTPipeline(**{**pipe_2.components, "scheduler": LuminaMGPTScheduler(**values)}).scheduler
        return scheduler.config.top_k, scheduler.config.text_top_k

    assert settings(resolution=96) == (4096, 10)
    assert settings(resolution=96, top_k=2000) == (2000, 10)


def test_rows_of_97_places(pipe_2):
    given = torch.arange(4 * 96).view(1, 4, 96)
    given[:, 2:] = -1

    def call(number):
        arguments = {"latents": given, "guidance_scale": 1.0, "top_k": 1, "num_draft_tokens": number}
        return pipe_2("a red fox", height=32, width=768, output_type="latent", **arguments).images

    codes = call(0)
    assert codes.shape == (1, 4, 96)
    for number in (31, 127, "auto"):
        assert torch.equal(call(number), codes)


def test_no_tensor_holds_all_places_and_codes(pipe_2):
    pixels = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 768, 3), dtype=np.uint8))
    with LargestTensor() as drawing:
        pipe_2("a", height=64, width=256, num_draft_tokens=7, return_log_probs=True, output_type="pt")
    # Of 256 places; a row of 32 codes keeps its logits for the drafts of the next.
    assert 8 <= drawing.of_codes <= 64
    with LargestTensor() as encoding:
        codes = encode_pixels(pipe_2.vqvae, pixels, torch.device("cpu"))
    assert codes.shape == (12, 96)
    assert encoding.of_codes <= 256  # of 1,152 places


class LargestTensor(TorchDispatchMode):
    """The most rows of a tensor with as many columns as there are codes."""

    of_codes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim and result.shape[-1] == 16384:
            self.of_codes = max(self.of_codes, result.numel() // 16384)
        return result


def test_beside_calls_of_lumina_mgpt(pipe_2, random_pipe):
    pipes = (pipe_2, random_pipe)
    settings = {"height": 64, "width": 32, "guidance_scale": 3.0, "num_draft_tokens": 3}

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    alone = [pipe("a", **settings, generator=generator(), output_type="latent").images for pipe in pipes]
    streams = [pipe.stream("a", **settings, generator=generator(), every=1) for pipe in pipes]
    last = [None, None]
    while any(streams):
        for index, stream in enumerate(streams):
            step = next(stream, None) if stream else None
            streams[index], last[index] = (None, last[index]) if step is None else (stream, step)
    assert all(torch.equal(step.codes, codes) for step, codes in zip(last, alone, strict=True))


def test_the_scale_is_constant_by_default(pipe_2):
    run = RUNS["greedy_64x96_cfg64.0_t2i_64x96"]
    prompt = PROMPTS[run["prompt"]]
    settings = {"height": 96, "width": 64, "top_k": 1, "output_type": "latent"}
    plain = pipe_2(prompt["text"], guidance_scale=64.0, **settings).images[0]
    assert pipe_2.image_vocabulary.to_tokens(plain).tolist()[3:] != run["tokens"]
    run = RUNS["greedy_64x96_cfg4.0_t2i_64x96"]
    plain = pipe_2(prompt["text"], guidance_scale=4.0, **settings).images[0]
    assert pipe_2.image_vocabulary.to_tokens(plain).tolist()[3:] == run["tokens"]


# Training


@pytest.mark.parametrize("has_codes", [True, False])
def test_training_items_are_the_originals(pipe, tmp_path, has_codes):
    tokenizer = pipe.tokenizer if has_codes else load_tokenizer(CHECKPOINT_2, family="lumina-mgpt-2")
    items = recorded("training_items.json")["items"]
    records = []
    for item in items:
        for name in item["images"]:
            PIL.Image.fromarray(IMAGES[name]).save(tmp_path / f"{name}.png")
        turns = [{"from": role, "value": text} for role, text in item["conversations"]]
        records.append({"conversations": turns, "image": [f"{name}.png" for name in item["images"]]})
    (tmp_path / "data.json").write_text(json.dumps(records))
    source = ConversationSource(tmp_path / "data.json")
    config = None if has_codes else pipe.transformer.config  # which names them then
    settings = EncodingSettings(96)
    pretokenize(source, tmp_path / "out", tokenizer, pipe.vqvae, settings, config=config, progress=False)
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    for row, item in zip(rows, items, strict=True):
        assert row["input_ids"] == item["tokens"]
        assert row["labels"] == item["labels"]


def test_loss_and_gradients_are_the_originals(pipe):
    golden = recorded("loss.json")
    model = make_trainable(copy_of(pipe).transformer.requires_grad_(True), golden["z_loss_weight"], dropout=0.0)
    samples = [
        {"input_ids": torch.tensor(item["tokens"]), "labels": torch.tensor(item["labels"])}
        for item in recorded("training_items.json")["items"]
    ]
    output = model(**PaddedCollator(0)(samples))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(golden["total"], rel=1e-5)
    weights = dict(model.named_parameters())
    for name, norm in golden["gradient_norms"].items():
        gradient = weights[name].grad
        if "_norm." in name and gradient.ndim == 2:  # the original's heads share a row
            gradient = gradient.sum(dim=0)
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-3), name
