# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images from images: the recorded runs, tasks, sizes, several images, registration."""

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import CHECKPOINT
from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image
from omni import arrays, chat_from, img2img_from, random_runs, slow_answer, trained_runs
from reference import load_stock

from lumina_mgpt_diffusers import (
    TASKS,
    LuminaMGPTChatPipeline,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTPipeline,
    Task,
)
from lumina_mgpt_diffusers.lumina_mgpt.prompts import find_task


RUNS = trained_runs()
RANDOM_RUNS = random_runs()
IMAGES = arrays("7b_like/images.npz")
RANDOM_IMAGES = arrays("7b_like/generated_images.npz")
IMAGE = IMAGES["rgb_96x96"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipe(random_pipe):
    return img2img_from(random_pipe)


# What the original answers


@pytest.mark.parametrize("num_draft_tokens", [0, 7])
@pytest.mark.parametrize("size", [None, "free"])
def test_trained_answers_are_those_of_the_original(trained_pipe, size, num_draft_tokens):
    run = RUNS["i2i_cfg1.0"]
    pipe = img2img_from(trained_pipe, resolution=64, num_draft_tokens=num_draft_tokens)
    arguments = {"image": run["images"][0], "task": "depth", "top_k": 1, "size": size}
    (codes,) = pipe(output_type="latent", **arguments).images
    assert pipe.image_vocabulary.to_tokens(codes).tolist() == run["tokens_without_eos"]
    output = pipe(**arguments)
    expected = arrays("7b_like_trained/generated_images.npz")["i2i_cfg1.0/out0"].astype(int)
    assert np.abs(np.asarray(output.images[0]) - expected).max() <= 1


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("num_draft_tokens", [0, 7])
def test_forced_sizes_give_the_codes_of_the_original(random_pipe, scale, num_draft_tokens):
    run = RANDOM_RUNS[f"greedy_edit_64x64_cfg{scale}"]
    pipe = img2img_from(random_pipe, num_draft_tokens=num_draft_tokens)
    arguments = {"image": IMAGE, "task": "depth", "guidance_scale": scale, "top_k": 1, "height": 64, "width": 64}
    (codes,) = pipe(output_type="latent", **arguments).images
    assert pipe.image_vocabulary.to_tokens(codes)[3:].tolist() == run["tokens"]
    if num_draft_tokens == 0:
        expected = RANDOM_IMAGES[f"{run['name']}/0"].astype(int)
        assert np.abs(np.asarray(pipe(**arguments).images[0]) - expected).max() <= 1


# Tasks


@pytest.mark.parametrize(
    ("task", "prompt", "expected"),
    [
        ("edit", "Make it night.", "Make it night. <|image|>"),
        ("depth", None, "Depth estimation. <|image|>"),
        ("normal", None, "Surface normal estimation. <|image|>"),
        ("segmentation", None, "Semantic segmentation. <|image|>"),
        ("pose", None, "Human pose estimation. <|image|>"),
        ("detection", "a dog", "Detect: a dog <|image|>"),
        (
            "control",
            "a house",
            "Generate an image according to the provided image, and according to the following caption:\n"
            "a house <|image|>",
        ),
        ("Colorize <|image|> now", None, "Colorize <|image|> now"),
        ("{prompt}: <|image|>", "{prompt} {x} <|image|>", "{prompt} {x} <|image|>: <|image|>"),
        (Task("Blur it. <|image|>"), None, "Blur it. <|image|>"),
    ],
)
def test_what_each_task_asks(pipe, task, prompt, expected):
    content = find_task(task).content(prompt, 1)
    said = "".join("<|image|>" if part["type"] == "image" else part["text"] for part in content)
    assert said == expected
    assert sum(part["type"] == "image" for part in content) == 1


def test_several_images_are_where_the_prompt_marks_them():
    prompt = "Put <|image|> into <|image|>."
    content = TASKS["edit"].content(prompt, 2)
    assert content == [
        {"type": "text", "text": "Put "},
        {"type": "image"},
        {"type": "text", "text": " into "},
        {"type": "image"},
        {"type": "text", "text": "."},
    ]
    content = Task("<|image|><|image|>{prompt}").content("<|image|>", 2)
    assert content == [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "<|image|>"}]
    caption = TASKS["control"].content("A <|image|> B <|image|>", 2)
    assert caption[0]["text"].endswith("caption:\nA ")


def test_several_images_in(pipe, prompts_golden):
    golden = prompts_golden["prompts"]["two_images"]
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    images = [IMAGES[name] for name in golden["images"]]
    output = pipe(golden["qas"][0][0], image=[images], guidance_scale=1.0, height=32, width=32, output_type="latent")
    hook.remove()
    assert seen[0][: len(golden["input_ids"])] == golden["input_ids"]
    assert output.images.shape == (1, 2, 2)


def test_users_can_add_tasks(pipe, monkeypatch):
    monkeypatch.setitem(TASKS, "brightness", Task("How bright? <|image|>", 1.0, 0.0, 0, lambda pixels: pixels.mean()))
    output = pipe(image=IMAGE, task="brightness", height=32, width=32)
    assert output.arrays == [np.asarray(output.images[0]).mean()]


def test_samplers_of_tasks(pipe, monkeypatch):
    seen = []
    monkeypatch.setattr(pipe.scheduler, "step", spy(pipe.scheduler.step, seen))
    arguments = {"image": IMAGE, "height": 32, "width": 32, "output_type": "latent"}
    for call, expected in (
        ({"task": "depth"}, (1.0, 200)),
        ({"prompt": "Redder."}, (1.0, 2000)),
        ({"task": "depth", "top_k": 7, "temperature": 0.5}, (0.5, 7)),
        ({"task": "<|image|>"}, (pipe.scheduler.config.temperature, pipe.scheduler.config.top_k)),
    ):
        pipe(**arguments, **call)
        assert seen[-1] == expected
    scales = {}
    for task, prompt in (("edit", "Redder."), ("depth", None), ("control", "a house")):
        pipe(prompt, task=task, **arguments)
        scales[task] = pipe.guidance_scale
    assert scales == {"edit": 4.0, "depth": 1.0, "control": 1.0}


def test_samplers_of_tasks_are_those_of_the_original(random_pipe, monkeypatch):
    pipe = img2img_from(random_pipe, guidance_scale=2.0, temperature=0.3, top_k=7)
    seen = []
    monkeypatch.setattr(pipe.scheduler, "step", spy(pipe.scheduler.step, seen))
    expected = {"edit": (4.0, 1.0, 2000), "control": (1.0, 1.0, 2000)}
    for task in TASKS:
        prompt = "a house" if TASKS[task].needs_prompt else None
        pipe(prompt, IMAGE, task, height=32, width=32, output_type="latent")
        assert (pipe.guidance_scale, *seen[-1]) == expected.get(task, (1.0, 1.0, 200)), task


def spy(step, seen):
    def wrapped(*args, **kwargs):
        seen.append((float(kwargs["places"].temperature), int(kwargs["places"].top_k)))
        return step(*args, **kwargs)

    return wrapped


def test_control_tokens_in_prompts_are_text(pipe):
    prompt = "<|image|> <eoss> <racm3:break> IMGIMGBZ <reserved08706>"
    with torch.no_grad():
        (ids,) = pipe.encode_prompts([prompt], [[torch.zeros(2, 2, dtype=torch.long)]], TASKS["edit"])
    image = pipe.image_vocabulary.to_tokens(torch.zeros(2, 2, dtype=torch.long)).tolist()
    text = ids[1 : -1 - len(image)]
    assert ids[-1 - len(image) : -1] == image
    assert pipe.tokenizer.decode(text, clean_up_tokenization_spaces=False) == prompt + " "
    assert not set(text) & set(pipe.tokenizer.added_tokens_encoder.values())


# Sizes and batches


def test_the_size_is_that_of_the_encoded_input(pipe):
    sizes = {
        name: pipe(image=IMAGES[name], task="pose", temperature=0.0).images[0].size
        for name in ("rgb_192x192_half", "rgb_113x157_wh_crop", "rgb_500x40_wh_crop")
    }
    assert sizes == {
        "rgb_192x192_half": (96, 96),
        "rgb_113x157_wh_crop": (64, 96),
        "rgb_500x40_wh_crop": (128, 32),
    }
    output = pipe(image=IMAGES["rgb_113x157_wh_crop"], task="pose", width=32, temperature=0.0)
    assert output.images[0].size == (32, 96)
    codes = torch.zeros(2, 6, dtype=torch.long)
    assert pipe(image=codes, task="pose", output_type="latent").images.shape == (1, 2, 6)


def test_the_free_size_is_chosen_as_the_original_does(random_pipe, prompts_golden):
    pipe = img2img_from(random_pipe)
    (codes,) = pipe(image=IMAGE, task="depth", size="free", top_k=1, output_type="latent").images
    # The slow reference chooses the size tags if it is made to begin with an image.
    chat = LuminaMGPTChatPipeline(
        tokenizer=pipe.tokenizer, transformer=pipe.transformer, vqvae=pipe.vqvae, scheduler=pipe.scheduler
    )
    stock = load_stock(CHECKPOINT)
    stock.lm_head = StartFirst(stock.lm_head, chat.image_vocabulary.start_id)
    context = prompts_golden["prompts"]["img_explicit"]["input_ids"]
    answer = slow_answer(stock, chat, context, 1 + 2 + codes.shape[0] * (codes.shape[1] + 1) + 1)
    assert answer == pipe.image_vocabulary.to_tokens(codes).tolist()


class StartFirst(torch.nn.Module):
    def __init__(self, head, start_id):
        super().__init__()
        self.head, self.start_id, self.is_first = head, start_id, True

    def forward(self, hidden):
        logits = self.head(hidden)
        if self.is_first:
            logits[..., self.start_id] += 1e4
        self.is_first = False
        return logits


def test_free_sizes_are_sampled_in_a_batch_as_alone(pipe):
    arguments = {"task": "edit", "size": "free", "temperature": 50.0, "top_k": 0, "output_type": "latent"}
    prompts = ["Redder.", "Make it a painting.", "Night."]
    images = [IMAGE, IMAGES["rgb_64x128_wh"], IMAGE]
    together = pipe(prompts, image=images, generator=[seeded(row) for row in range(3)], **arguments).images
    assert len({tuple(codes.shape) for codes in together}) > 1
    for row, codes in enumerate(together):
        (alone,) = pipe(prompts[row], image=images[row], generator=seeded(row), **arguments).images
        assert torch.equal(codes, alone)
        rows, columns = codes.shape
        assert rows * columns <= 36 and max(rows, columns) <= 4 * min(rows, columns)


@pytest.mark.parametrize("size", [{"size": "free"}, {"height": 32, "width": 32}])
def test_a_context_is_fed_once(pipe, size):
    positions = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs["position_ids"]), with_kwargs=True
    )
    pipe("Redder.", image=IMAGE, guidance_scale=1.0, top_k=1, output_type="latent", **size)
    hook.remove()
    fed = torch.cat([one.flatten() for one in positions])
    assert (fed < 20).sum() == 20


def test_one_image_of_several_prompts_is_encoded_once(pipe):
    seen = []
    hook = pipe.vqvae.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    arguments = {"height": 32, "width": 32, "top_k": 1, "output_type": "latent"}
    images = pipe(["Redder.", "Bluer.", "Greener."], image=IMAGE, **arguments).images
    hook.remove()
    assert len(images) == 3 and len(seen) == 1


@pytest.mark.parametrize("one_generator", [False, True])
def test_a_batch_of_different_sizes_equals_each_alone(trained_pipe, one_generator):
    pipe = img2img_from(trained_pipe, num_draft_tokens=3)
    images = [IMAGES[name] for name in ("rgb_128x64_wh", "rgb_96x96", "rgb_128x64_wh")]
    prompts = ["Redder.", "Make it a painting.", "Night."]
    arguments = {"output_type": "latent", "top_k": 100}
    generator = seeded(0) if one_generator else [seeded(row) for row in range(3)]
    together = pipe(prompts, image=images, generator=generator, **arguments).images
    assert [tuple(codes.shape) for codes in together] == [(4, 8), (6, 6), (4, 8)]
    generator = seeded(0)
    for row, codes in enumerate(together):
        own = generator if one_generator else seeded(row)
        (alone,) = pipe(prompts[row], image=images[row], generator=own, **arguments).images
        assert torch.equal(codes, alone)


def test_shapes_of_batches(pipe):
    arguments = {"height": 32, "width": 32, "temperature": 0.0, "output_type": "latent"}
    batch = np.stack([IMAGE, IMAGE[::-1]])
    assert len(pipe("Redder.", image=batch, **arguments).images) == 2
    assert len(pipe(["Redder.", "Bluer.", "Greener."], image=IMAGE, **arguments).images) == 3
    assert len(pipe(["Redder.", "Bluer."], image=[IMAGE, IMAGE], num_images_per_prompt=2, **arguments).images) == 4


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(pipe, output_type):
    same = pipe(image=[IMAGE, IMAGE], task="depth", height=32, width=64, top_k=1, output_type=output_type)
    different = pipe(image=[IMAGE, IMAGES["rgb_128x64_wh"]], task="pose", top_k=1, output_type=output_type)
    if output_type == "pil":
        assert [image.size for image in same.images + different.images] == [(64, 32)] * 2 + [(96, 96), (128, 64)]
    else:
        expected = {"np": (2, 32, 64, 3), "pt": (2, 3, 32, 64), "latent": (2, 2, 4)}[output_type]
        assert tuple(same.images.shape) == expected
        shapes = {
            "np": [(96, 96, 3), (64, 128, 3)],
            "pt": [(3, 96, 96), (3, 64, 128)],
            "latent": [(6, 6), (4, 8)],
        }[output_type]
        assert [tuple(image.shape) for image in different.images] == shapes
    assert different.arrays is None
    assert same.arrays is None if output_type == "latent" else same.arrays[0].shape == (32, 64)
    images, arrays_ = pipe(image=IMAGE, task="depth", height=32, width=64, output_type=output_type, return_dict=False)
    assert len(images) == 1


def test_random_crops(pipe):
    seen = []
    image = PIL.Image.fromarray(IMAGES["rgb_500x40_wh_crop"])
    hook = pipe.vqvae.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for generator in (None, seeded(0), seeded(0), seeded(1)):
        pipe(image=image, task="depth", height=32, width=32, temperature=0.0, crop_generator=generator)
    hook.remove()
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[3])


def test_a_refused_call_leaves_the_generator_of_crops(pipe, trained_pipe):
    generator = seeded(0)
    before = generator.get_state()
    image = PIL.Image.fromarray(IMAGES["rgb_500x40_wh_crop"])
    for wrong in ({"height": 50}, {"top_k": -1}, {"output_type": "jpg"}, {"size": "any"}, {"negative_prompt": 3}):
        with pytest.raises(ValueError):
            pipe("Redder.", image=image, crop_generator=generator, **wrong)
    chat = chat_from(trained_pipe)
    for wrong in ({"height": 50, "width": 32}, {"top_p": 2.0}, {"output_type": "jpg"}, {"generator": 3}):
        with pytest.raises(ValueError):
            chat("What is it? <|image|>", images=[image], crop_generator=generator, **wrong)
    assert torch.equal(generator.get_state(), before)


def test_callbacks_and_interruption(pipe):
    seen = []

    def callback(own, step, timestep, kwargs):
        seen.append((step, int(timestep), kwargs["latents"].shape))
        own._interrupt = step == 7
        return {}

    output = pipe(image=IMAGE, task="depth", height=64, width=64, output_type="latent", callback_on_step_end=callback)
    assert seen[-1] == (7, 7, (1, 4, 4)) and pipe.num_timesteps == 16
    assert (output.images.flatten() >= 0).tolist() == [True] * 8 + [False] * 8


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": None}, "`image` has to be given"),
        ({"image": []}, "`image` has to hold at least one image"),
        ({"image": [[]]}, "`image` has to hold at least one image"),
        ({"image": "no.png"}, "`image` is 'no.png', which cannot be opened"),
        ({"task": "paint"}, r"`task` has to be one of \['edit', .* but is 'paint'"),
        ({"task": 3}, "`task` has to be one of"),
        ({"prompt": "Redder.", "task": "depth"}, "`prompt` has no place in the task"),
        ({"task": "detection"}, "`prompt` has to be given, for the task"),
        ({"prompt": ["a", "b", "c"], "image": [IMAGE, IMAGE]}, "There are 3 prompts in `prompt` but 2 images"),
        ({"prompt": [3]}, "`prompt` has to be a string or a list of strings but holds 3"),
        ({"prompt": "a", "image": [[IMAGE, IMAGE]]}, "`image` holds 2 images for one prompt.*marks 0"),
        ({"task": "depth", "image": [[IMAGE, IMAGE]]}, "`image` holds 2 images for one prompt"),
        ({"size": "any"}, r"`size` has to be one of \[None, 'free'\] but is 'any'"),
        (
            {"size": "free", "height": 64},
            "`height` and `width` have to be None with `size='free'` but are 64 and None",
        ),
        ({"height": 50}, "divisible by 32 but are 50 and 96"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` has to be an integer >= 1"),
        ({"generator": [torch.Generator()] * 3}, "list of generators of length 3"),
        ({"crop_generator": 1}, "`crop_generator` has to be a `torch.Generator`"),
        ({"output_type": "jpg"}, "`output_type` has to be one of"),
        ({"guidance_scale": -1}, "`guidance_scale` has to be"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "`callback_on_step_end_tensor_inputs` has to be in"),
        ({"image": torch.zeros(3, 3, dtype=torch.long)}, "`image` holds VQ codes that are no image"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_runs(pipe, count_forwards, arguments, message):
    task = {} if "task" in arguments or "prompt" in arguments else {"task": "depth"}
    with count_forwards(pipe.transformer) as forwards, pytest.raises(ValueError, match=message):
        pipe(**{"image": IMAGE, **task, **arguments})
    assert len(forwards) == 0


# diffusers


def test_diffusers_knows_the_pipelines(random_pipe, pipe, tmp_path):
    assert diffusers.LuminaMGPTImg2ImgPipeline is LuminaMGPTImg2ImgPipeline
    assert diffusers.LuminaMGPTChatPipeline is LuminaMGPTChatPipeline
    assert type(AutoPipelineForImage2Image.from_pipe(random_pipe)) is LuminaMGPTImg2ImgPipeline
    assert type(AutoPipelineForText2Image.from_pipe(pipe)) is LuminaMGPTPipeline
    chat = LuminaMGPTChatPipeline.from_pipe(pipe)
    assert chat.transformer is pipe.transformer and chat.scheduler is pipe.scheduler
    pipe.save_pretrained(tmp_path)
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path)) is LuminaMGPTImg2ImgPipeline
    assert type(AutoPipelineForImage2Image.from_pretrained(tmp_path)) is LuminaMGPTImg2ImgPipeline
    assert type(AutoPipelineForText2Image.from_pretrained(tmp_path)) is LuminaMGPTPipeline
    chat = LuminaMGPTChatPipeline.from_pretrained(tmp_path)
    assert chat("Hello", max_new_tokens=2).finish_reason in ("stop", "length")
