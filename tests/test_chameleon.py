# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Chameleon and Anole: images of one size, `[start, codes, end]`, without size tags and row ends. Here of 64x64 px."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CHECKPOINT, TRAINED_CHECKPOINT, VQGAN, copy_of
from omni import GREEDY, Playback, chat_from, img2img_from, modular_from
from reference import guided_logits
from transformers import ChameleonConfig

from lumina_mgpt_diffusers import (
    CHAMELEON,
    LUMINA_MGPT,
    ImagePart,
    LuminaMGPTConversation,
    LuminaMGPTInpaintPipeline,
    LuminaMGPTPipeline,
    LuminaMGPTScheduler,
    estimate_memory,
    register_family,
)
from lumina_mgpt_diffusers.lumina_mgpt.families import families, find_family, registry
from lumina_mgpt_diffusers.lumina_mgpt.unirep import MalformedImageError, trained_sizes
from lumina_mgpt_diffusers.lumina_mgpt.vocabulary import read_vocabulary
from lumina_mgpt_diffusers.original import (
    base_size_from_name,
    convert_diffusers_to_original,
    convert_original_to_diffusers,
)
from lumina_mgpt_diffusers.original.layout import checkpoint_family


SMALL = replace(CHAMELEON, name="small-chameleon", grid_size=64, base_size=64)

NUM_CODES = 16

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_FAMILIES", families())
        yield register_family(SMALL)


@pytest.fixture(scope="module")
def pipe(registered) -> LuminaMGPTPipeline:
    """Trained a little, though on images with tags. Tests may not change it."""
    pipe = LuminaMGPTPipeline.from_pretrained(
        TRAINED_CHECKPOINT,
        original_vqgan=VQGAN,
        original_tokenizer=CHECKPOINT,
        family=SMALL,
        dtype=torch.float32,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def vocabulary(pipe):
    return pipe.image_vocabulary


def codes_of(pipe, prompt="a red fox", **kwargs) -> torch.LongTensor:
    return pipe(prompt, output_type="latent", **{"num_draft_tokens": 0, **kwargs}).images


@torch.no_grad()
def reference_codes(pipe, scale: float, given: dict[int, int] | None = None) -> list[int]:
    """Greedy codes of the same prompt, the whole of both sequences anew for every code."""
    vocabulary = pipe.image_vocabulary
    context = pipe.encode_prompt("a red fox")[0][0].tolist()
    image = [vocabulary.start_id]
    codes: list[int] = []
    for index in range(NUM_CODES):
        unconditional = [pipe.tokenizer.bos_token_id, *image] if scale > 1 else None
        logits = guided_logits(pipe.transformer, [*context, *image], unconditional, scale)
        codes.append((given or {}).get(index, int(logits[vocabulary.code_ids].argmax())))
        image.append(int(vocabulary.code_ids[codes[-1]]))
    return codes


def test_the_family(pipe, vocabulary):
    assert pipe.family is SMALL and pipe.scheduler.config.resolution == 64
    config = pipe.scheduler.config
    assert (config.guidance_scale, config.temperature, config.top_k, config.top_p) == (3.0, 0.7, 0, 0.9)
    assert (vocabulary.row_end_id, vocabulary.size_tag_ids, vocabulary.fixed_size) == (None, (), (64, 64))
    assert trained_sizes(64, 64) == ((64, 64),) and trained_sizes(512, CHAMELEON.grid_size) == ((512, 512),)
    released = read_vocabulary(pipe.tokenizer, 8192, 16, family=CHAMELEON)
    assert released.num_tokens(512, 512) == 1026
    # All its names are those of Lumina-mGPT: they tell nothing.
    assert find_family(None, pipe.tokenizer.get_vocab()) is LUMINA_MGPT
    assert find_family({"model_family": "chameleon"}) is CHAMELEON


@pytest.mark.parametrize(
    "name",
    ["facebook/chameleon-7b", "chameleon-30b", "GAIR/Anole-7b-v0.1", "models--leloy--Anole-7b-v0.1-hf/snapshots/0"],
)
def test_released_names(pipe, name):
    names = pipe.tokenizer.get_vocab()
    assert checkpoint_family({"vocabulary_map": names}, checkpoint=name) is CHAMELEON
    assert checkpoint_family({}, checkpoint=name) is CHAMELEON
    assert checkpoint_family({}, "lumina-mgpt", checkpoint=name) is LUMINA_MGPT
    assert base_size_from_name(name) is None


@pytest.mark.parametrize("name", ["Lumina-mGPT-7B-768", "Chameleon_7B_mGPT", "my-chameleon-7b"])
def test_names_of_others(pipe, name):
    assert checkpoint_family({}, tokenizer=pipe.tokenizer, checkpoint=name) is LUMINA_MGPT


def test_a_checkpoint_is_known_by_its_name(pipe, tmp_path):
    checkpoint = tmp_path / "Anole-7b-v0.1"
    shutil.copytree(CHECKPOINT, checkpoint)
    loaded = LuminaMGPTPipeline.from_pretrained(checkpoint, original_vqgan=VQGAN)
    assert loaded.family is CHAMELEON and loaded.scheduler.config.resolution == 512
    output = convert_original_to_diffusers(checkpoint, tmp_path / "out", original_vqgan=VQGAN)
    assert json.loads((output / "transformer" / "config.json").read_text())["model_family"] == "chameleon"


def test_the_prompt_is_the_bare_text(pipe):
    (ids,) = pipe.encode_prompt("Draw a <eoss> dog.")[0].tolist()
    assert pipe.tokenizer.decode(ids) == "<s>Draw a <eoss> dog.<reserved08706>"
    assert pipe.image_vocabulary.end_id not in ids
    messages = [{"role": "user", "content": "Draw a dog."}]
    template = pipe.tokenizer.apply_chat_template(messages, tokenize=False)
    assert template == "<s>Draw a dog.<reserved08706>" and len(pipe.tokenizer.chat_template) < 4000


def test_images_as_tokens(vocabulary):
    codes = torch.arange(NUM_CODES).view(4, 4) + 5
    tokens = vocabulary.to_tokens(codes)
    assert tokens.tolist() == [vocabulary.start_id, *vocabulary.code_ids[5:21].tolist(), vocabulary.end_id]
    assert len(tokens) == vocabulary.num_tokens(64, 64) and torch.equal(vocabulary.to_codes(tokens), codes)
    with pytest.raises(ValueError, match="number of rows of `codes` has to be a multiple of 4 of at most 4 but is 8"):
        vocabulary.to_tokens(codes.repeat(2, 1))
    with pytest.raises(MalformedImageError, match="An image has 4x4 codes, 18 tokens, but the sequence has 17"):
        vocabulary.to_codes(tokens[:-1])
    with pytest.raises(MalformedImageError, match="An image has at least 2 tokens but the sequence has 1"):
        vocabulary.to_codes(tokens[:1])
    broken = tokens.clone()
    broken[7] = vocabulary.end_id
    with pytest.raises(MalformedImageError, match=r"Index 7 has to hold a code \(row 1, column 2\)"):
        vocabulary.to_codes(broken)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_greedy_codes_are_those_of_plain_forwards(pipe, scale):
    expected = reference_codes(pipe, scale)
    arguments = {"guidance_scale": scale, "temperature": 0.0}
    assert codes_of(pipe, **arguments).flatten().tolist() == expected
    for num_draft_tokens in (3, 7, "auto"):
        for draft_init in ("logits", "above", "random"):
            drafts = {"num_draft_tokens": num_draft_tokens, "draft_init": draft_init}
            assert codes_of(pipe, **arguments, **drafts).flatten().tolist() == expected
    both = codes_of(pipe, ["a blue cup", "a red fox"], num_draft_tokens=5, **arguments)
    assert both[1].flatten().tolist() == expected


def test_given_codes(pipe):
    given = {3: 11, 4: 12, 5: 13}
    latents = torch.full((1, 4, 4), -1)
    for index, code in given.items():
        latents.view(-1)[index] = code
    expected = reference_codes(pipe, 3.0, given)
    for num_draft_tokens in (0, 6):
        codes = codes_of(pipe, latents=latents, temperature=0.0, num_draft_tokens=num_draft_tokens)
        assert codes.flatten().tolist() == expected


def test_a_callback_that_changes_codes(pipe):
    def change(pipe, step, timestep, kwargs):
        latents = kwargs["latents"].clone()
        if step >= 9 and latents[0, 1, 2] != 77:
            latents[0, 1, 2], latents[0, 1, 3], latents[0, 2:] = 77, -1, -1
            return {"latents": latents}
        return {}

    first = reference_codes(pipe, 3.0)
    assert first[6] != 77
    for num_draft_tokens in (0, 4):
        codes = codes_of(
            pipe, temperature=0.0, num_draft_tokens=num_draft_tokens, callback_on_step_end=change
        ).flatten()
        assert codes.tolist() == reference_codes(pipe, 3.0, {6: 77})


def test_sampling_does_not_depend_on_drafts(pipe):
    expected = codes_of(pipe, generator=seeded())
    assert torch.equal(codes_of(pipe, generator=seeded(), num_draft_tokens=7), expected)
    assert not torch.equal(codes_of(pipe, generator=seeded(1)), expected)
    output = pipe("a red fox", generator=seeded(), return_log_probs=True)
    assert output.images[0].size == (64, 64) and output.log_probs.shape == (1, 4, 4)
    steps = [step.num_rows for step in pipe.stream("a red fox", generator=seeded(), num_draft_tokens=0)]
    assert steps == [1, 2, 3, 4]


def test_blocks_make_the_same_image(pipe):
    call = {"prompt": "a red fox", "output_type": "latent", "output": "images"}
    assert torch.equal(modular_from(pipe)(generator=seeded(), **call), codes_of(pipe, generator=seeded()))


def test_images_of_images(pipe):
    (codes,) = pipe.encode_image(IMAGE)
    mask = np.zeros((64, 64), dtype=bool)
    mask[:16, :16] = True
    inpaint = LuminaMGPTInpaintPipeline(**pipe.components)
    inpaint.set_progress_bar_config(disable=True)
    after = inpaint("a", IMAGE, mask, output_type="latent", generator=seeded()).images[0]
    assert set(map(tuple, (after != codes).nonzero().tolist())) <= {(0, 0)}
    (request,) = img2img_from(pipe).prepare("Make it night", IMAGE, "{prompt} <|image|>").requests
    image = pipe.image_vocabulary.to_tokens(codes).tolist()
    assert request.context[-len(image) - 1 : -1] == image
    assert request.unconditional_context == [pipe.tokenizer.bos_token_id]


@pytest.mark.parametrize("num_draft_tokens", [0, 10])
def test_answers_with_images(pipe, vocabulary, num_draft_tokens):
    text = pipe.tokenizer("I see", add_special_tokens=False)["input_ids"]
    codes = torch.arange(NUM_CODES).view(4, 4) + 7
    image = vocabulary.to_tokens(codes).tolist()
    script = [*text, *image, *text, *image]
    transformer = Playback(pipe.transformer.config, script, vocabulary.separator_id, text[-1])
    arguments = {"guidance_scale": 1.0, "output_type": "latent", **GREEDY}
    for budget in (len(script) + 1, len(text) + 1, len(text) + 9, len(text) + len(image) - 1):
        transformer.start = None
        chat = chat_from(pipe, transformer=transformer, num_draft_tokens=num_draft_tokens)
        conversation = LuminaMGPTConversation()
        output = chat("Hello", conversation=conversation, max_new_tokens=budget, **arguments)
        assert output.token_ids == script[:budget]
        assert conversation.token_ids[-1] == vocabulary.separator_id
        images = [part for part in output.parts if isinstance(part, ImagePart)]
        if budget > len(script):
            assert all(part.is_complete and torch.equal(part.codes, codes) for part in images) and len(images) == 2
        elif budget == len(text) + 9:
            assert int((images[0].codes >= 0).sum()) == 8
            whole = conversation.token_ids[-len(image) - 1 : -1]
            assert vocabulary.to_codes(whole).flatten()[:8].tolist() == codes.flatten()[:8].tolist()


def masked(pipe, how: str) -> LuminaMGPTPipeline:
    """A Chameleon as it was released."""
    copied = copy_of(pipe)
    if how == "configuration":
        copied.transformer.config.mask_image_logits = True
    else:
        with torch.no_grad():
            copied.transformer.lm_head.weight[copied.image_vocabulary.code_ids] = 0
    return copied


@pytest.mark.parametrize("how", ["configuration", "weights"])
def test_a_chameleon_that_cannot_draw(pipe, how):
    released = masked(pipe, how)
    assert pipe.can_draw and not released.can_draw
    with pytest.raises(ValueError, match="This Chameleon cannot draw: .*`lm_head`.*can chat and describe images"):
        released("a red fox")
    (codes,) = pipe.encode_image(IMAGE)
    image = pipe.image_vocabulary.to_tokens(codes).tolist()
    start = pipe.image_vocabulary.start_id
    chat = chat_from(released)
    with torch.no_grad():  # it would like to
        chat.transformer.lm_head.weight[start] = 100 * chat.transformer.lm_head.weight[start]
    for seed in range(3):
        answer = chat("What? <|image|>", images=IMAGE, max_new_tokens=8, generator=seeded(seed))
        assert start not in answer.token_ids
    context = answer.conversation.token_ids
    assert context[context.index(start) :][: len(image)] == image


def test_a_chameleon_that_is_taken_for_another_family(random_pipe):
    taken = copy_of(random_pipe)
    head, codes = taken.transformer.lm_head.weight, taken.image_vocabulary.code_ids
    with torch.no_grad():
        head[codes[:-1]] = 0
    assert taken.can_draw  # a head that was zeroed to be trained, and saw one code
    with torch.no_grad():
        head[codes] = 0
    with pytest.raises(ValueError, match="This Lumina-mGPT cannot draw: the rows of its `lm_head`"):
        taken("a red fox", height=32, width=32)


def test_sizes_that_cannot_be(pipe):
    with pytest.raises(
        ValueError, match="have to be 64 and 64, the one size of the images of this model, but are 128"
    ):
        pipe("a", height=128, width=128)
    with pytest.raises(ValueError, match="`resolution` has to be 64, the side of all images of Chameleon, but is 128"):
        LuminaMGPTPipeline(**{**pipe.components, "scheduler": LuminaMGPTScheduler(resolution=128)})
    with pytest.raises(ValueError, match="all images are of the `grid_size` 512, which `base_size` .* is 768"):
        replace(CHAMELEON, base_size=768)
    bare = LuminaMGPTPipeline(**{**pipe.components, "scheduler": LuminaMGPTScheduler(num_draft_tokens=0)})
    assert bare.scheduler.config.resolution == 64


def test_it_is_saved_converted_and_back(pipe, tmp_path):
    expected = codes_of(pipe, temperature=0.0)
    pipe.save_pretrained(tmp_path / "saved")
    loaded = LuminaMGPTPipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert loaded.family is SMALL and torch.equal(codes_of(loaded, temperature=0.0), expected)
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "# Chameleon, base size 64" in card and "license_name: chameleon-research-license" in card
    back = convert_diffusers_to_original(tmp_path / "saved", tmp_path / "back")
    output = convert_original_to_diffusers(back, tmp_path / "new", original_vqgan=back / "original_tokenizers")
    assert json.loads((output / "transformer" / "config.json").read_text())["model_family"] == "small-chameleon"
    loaded = LuminaMGPTPipeline.from_pretrained(output, dtype=torch.float32)
    assert torch.equal(codes_of(loaded, temperature=0.0), expected)


def test_memory_without_row_ends():
    ours, tagged = (estimate_memory(ChameleonConfig(model_family=one), 512, 512) for one in ("chameleon", None))
    assert ours.drafts == 33 * 8192 * 4 and tagged.drafts == 34 * 8192 * 4
