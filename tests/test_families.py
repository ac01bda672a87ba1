# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A family of one's own: other names and prompts, codes and size tags of 8x8 pixels, through everything there is."""

import json
import shutil
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline, VQModel
from omni import chat_from, img2img_from
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import ChameleonConfig, PreTrainedTokenizerFast

from lumina_mgpt_diffusers import (
    LUMINA_MGPT,
    LUMINA_MGPT_2,
    CodeTokens,
    LuminaMGPTInpaintPipeline,
    LuminaMGPTPipeline,
    LuminaMGPTScheduler,
    LuminaMGPTTransformer,
    ModelFamily,
    PanelTask,
    Task,
    estimate_memory,
    register_family,
)
from lumina_mgpt_diffusers.lumina_mgpt.families import families, find_family, registry
from lumina_mgpt_diffusers.lumina_mgpt.prompts import encode_text
from lumina_mgpt_diffusers.lumina_mgpt.unirep import trained_sizes
from lumina_mgpt_diffusers.lumina_mgpt.vocabulary import from_names
from lumina_mgpt_diffusers.original import convert_diffusers_to_original, convert_original_to_diffusers


CELLS = ModelFamily(
    name="cells",
    title="Cells",
    codes=CodeTokens("<v", ">", width=3),
    start_token="<img>",
    end_token="</img>",
    row_end_token="<nl>",
    separator_token="<turn>",
    size_tag_token="<side_{number}>",
    first_token="<begin>",
    pad_token="<blank>",
    grid_size=8,
    stride=8,
    num_codes=24,
    base_size=24,
    text_to_image="Draw {prompt} in {width} by {height}.",
    caption="What is <|image|>?",
    tasks={"flip": Task("Flip <|image|>", guidance_scale=1.0), "below": PanelTask("{height}: {prompt}")},
    sampler={"top_k": 5, "guidance_scale": 2.0},
    card={"license": "mit"},
    licence="Do as you like.",
)

NAMES = ["<begin>", "<blank>", *(CELLS.codes.name(code) for code in range(24)), "</img>", "<img>", "<turn>", "<nl>"]
NAMES += [CELLS.size_tag(number) for number in range(1, 13)]

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def make_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(NAMES)
    special = {"bos_token": "<begin>", "eos_token": "<turn>", "pad_token": "<blank>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_transformer(tokenizer: PreTrainedTokenizerFast, **values) -> LuminaMGPTTransformer:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vq = {"base_channels": 32, "num_res_blocks": 1, "channel_multiplier": [1], "num_embeddings": 8}
    names = tokenizer.get_vocab()
    config = ChameleonConfig(
        **small, num_key_value_heads=2, vocab_size=len(names), vocabulary_map=names, vq_config=vq, **values
    )
    transformer = LuminaMGPTTransformer(config)
    torch.nn.init.normal_(transformer.lm_head.weight)
    return transformer.eval()


def make_vqvae() -> VQModel:
    return VQModel(
        block_out_channels=[32] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=2,
        vq_embed_dim=2,
        num_vq_embeddings=24,
        norm_num_groups=32,
        lookup_from_codebook=True,
        scaling_factor=1.0,
    ).eval()


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_FAMILIES", families())
        yield register_family(CELLS)


@pytest.fixture(scope="module")
def pipe(registered) -> LuminaMGPTPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        scheduler = LuminaMGPTScheduler(resolution=24, num_draft_tokens=0)
        pipe = LuminaMGPTPipeline(tokenizer, make_transformer(tokenizer), make_vqvae(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def original(pipe, tmp_path_factory):
    """The model in the form of the originals, without a word of its family."""
    folder = tmp_path_factory.mktemp("original") / "ckpt"
    pipe.tokenizer.save_pretrained(folder)
    weights = pipe.transformer.state_dict()
    for name, tensor in weights.items():
        is_shared = "_norm." in name and tensor.ndim == 2  # by the heads
        weights[name] = tensor[:1].contiguous() if is_shared else tensor.contiguous()
    save_file(weights, folder / "model.safetensors")
    config = {**pipe.transformer.config.to_dict(), "model_parallel_size": 1}
    (folder / "config.json").write_text(json.dumps(config))
    pipe.vqvae.save_pretrained(folder / "vqvae")
    return folder


def codes_of(pipe, **kwargs) -> torch.LongTensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a", height=16, width=40, top_k=1, output_type="latent", **kwargs).images


def test_sizes_are_of_cells_of_8_pixels(pipe):
    assert trained_sizes(24, 8)[:2] == ((16, 32), (8, 32)) or (24, 24) in trained_sizes(24, 8)
    assert pipe.vae_scale_factor == 8 and pipe.image_vocabulary.max_side == 96
    codes = codes_of(pipe)
    assert codes.shape == (1, 2, 5)
    names = pipe.tokenizer.convert_ids_to_tokens(pipe.image_vocabulary.to_tokens(codes[0]))
    assert names[:3] == ["<img>", "<side_2>", "<side_5>"] and names[8] == "<nl>" and names[-1] == "</img>"
    assert all(name.startswith("<v") for name in names[3:8])
    assert pipe("a").images[0].size == (24, 24)
    with pytest.raises(ValueError, match="have to be divisible by 8 but are 20 and 24"):
        pipe("a", height=20)
    wrong = LuminaMGPTPipeline(**{**pipe.components, "scheduler": LuminaMGPTScheduler(resolution=32)})
    wrong.scheduler = LuminaMGPTScheduler(resolution=20)
    with pytest.raises(ValueError, match="`resolution` has to be a positive multiple of 8 pixels"):
        wrong("a")


@pytest.mark.parametrize("num_draft_tokens", [0, 7, "auto"])
def test_drafts_and_batches(pipe, num_draft_tokens):
    expected = codes_of(pipe)
    assert torch.equal(codes_of(pipe, num_draft_tokens=num_draft_tokens), expected)
    both = pipe(["a", "b"], height=16, width=40, top_k=1, num_draft_tokens=num_draft_tokens, output_type="latent")
    assert torch.equal(both.images[:1], expected)


def test_the_prompt_is_the_familys(pipe):
    (ids,) = pipe.encode_prompt("a <turn> fox", height=16, width=40)[0].tolist()
    assert pipe.tokenizer.decode(ids) == "<begin>Draw a <turn> fox in 40 by 16.<turn>"
    assert ids.count(pipe.image_vocabulary.separator_id) == 1
    assert not set(encode_text(pipe.tokenizer, "<v001><img>")) & set(pipe.tokenizer.added_tokens_encoder.values())


def test_tasks_are_the_familys(pipe):
    img2img = img2img_from(pipe)
    (request,) = img2img.prepare(image=IMAGE, task="flip").requests
    names = pipe.tokenizer.convert_ids_to_tokens(request.context)
    assert names[6:9] == ["<img>", "<side_3>", "<side_3>"] and request.size == (24, 24)
    assert img2img(image=IMAGE, task="flip", generator=seeded()).images[0].size == (24, 24)
    output = img2img("b", IMAGE, "below", generator=seeded(), result_only=True)
    assert output.images[0].size == (24, 24)
    with pytest.raises(ValueError, match=r"`task` has to be one of \['flip', 'below'\]"):
        img2img("b", IMAGE, "edit")


def test_inpainting_and_chat(pipe):
    mask = np.zeros((24, 24), dtype=bool)
    mask[9, 9] = True
    inpaint = LuminaMGPTInpaintPipeline(**pipe.components)
    (codes,) = pipe.encode_image(IMAGE)
    after = inpaint("a", IMAGE, mask, output_type="latent", generator=seeded()).images[0]
    assert set(map(tuple, (after != codes).nonzero().tolist())) <= {(1, 1)}
    answer = chat_from(pipe)("What? <|image|>", images=PIL.Image.fromarray(IMAGE), max_new_tokens=3)
    image = pipe.image_vocabulary.to_tokens(codes).tolist()
    assert image == answer.conversation.token_ids[7 : 7 + len(image)]


def test_it_is_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.family is CELLS and torch.equal(codes_of(loaded), codes_of(pipe))
    card = (tmp_path / "README.md").read_text()
    assert "license: mit\n" in card and "# Cells, base size 24" in card and "Do as you like." in card


def test_an_original_checkpoint_is_known_by_its_names(pipe, original):
    loaded = LuminaMGPTPipeline.from_pretrained(original, original_vqgan=original / "vqvae", dtype=torch.float32)
    assert loaded.family is CELLS and torch.equal(codes_of(loaded), codes_of(pipe, guidance_scale=2.0))
    assert loaded.scheduler.config.resolution == 24 and loaded.scheduler.config.top_k == 5
    assert loaded.tokenizer.pad_token == "<blank>"


def test_it_is_converted_and_back(pipe, original, tmp_path):
    output = convert_original_to_diffusers(original, tmp_path / "new", original_vqgan=original / "vqvae")
    assert json.loads((output / "transformer" / "config.json").read_text())["model_family"] == "cells"
    loaded = LuminaMGPTPipeline.from_pretrained(output, dtype=torch.float32)
    assert torch.equal(codes_of(loaded), codes_of(pipe, guidance_scale=2.0))
    back = convert_diffusers_to_original(output, tmp_path / "back")
    assert json.loads((back / "tokenizer_config.json").read_text())["bos_token"] == "<begin>"


def test_a_family_that_is_not_registered(pipe, original, tmp_path):
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    config = json.loads((original / "config.json").read_text()) | {"model_family": "unheard-of"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    known = r"\['lumina-mgpt', 'lumina-mgpt-2', 'chameleon', 'pocket', 'cells'.*\]"
    message = rf"has to be one of {known} .* but is 'unheard-of'.*register_family"
    with pytest.raises(ValueError, match=message):
        LuminaMGPTPipeline.from_pretrained(tmp_path, original_vqgan=original / "vqvae")
    other = register_family(replace(CELLS, name="others", title="Others", base_size=48))
    loaded = LuminaMGPTPipeline.from_pretrained(original, original_vqgan=original / "vqvae", family=other)
    assert loaded.family is other and loaded.scheduler.config.resolution == 48
    with pytest.raises(ValueError, match="`family` is 'cells' but .* is a pipeline in diffusers' format"):
        pipe.save_pretrained(tmp_path / "saved")
        LuminaMGPTPipeline.from_pretrained(tmp_path / "saved", family="cells")


def test_codes_without_names(pipe):
    names = pipe.tokenizer.get_vocab()
    first = names["<v000>"]
    unnamed = replace(CELLS, name="unnamed", codes=CodeTokens(first_id=first))
    others = {name: id for name, id in names.items() if not name.startswith("<v")}
    vocabulary = from_names(others, 24, 8, unnamed)
    assert vocabulary.code_ids.tolist() == list(range(first, first + 24))
    assert find_family(None, others) is LUMINA_MGPT  # which then says what is missing
    register_family(unnamed)
    assert find_family(None, others) is unnamed and find_family(None, names) is CELLS


def test_which_family_names_are_of(random_pipe, pipe_2, pipe):
    assert (random_pipe.family, pipe_2.family, pipe.family) == (LUMINA_MGPT, LUMINA_MGPT_2, CELLS)
    assert find_family({"model_family": "lumina-mgpt-2"}, pipe.tokenizer.get_vocab()) is LUMINA_MGPT_2


def test_memory_is_that_of_the_familys_vq_model(pipe):
    stated, plain = (ChameleonConfig(model_family=name) for name in ("lumina-mgpt-2", None))
    ours, explicit, first = (
        estimate_memory(stated, 256, 256),
        estimate_memory(stated, 256, 256, num_codes=16384, patch_size=8, vqvae_parameters=270_669_103),
        estimate_memory(plain, 256, 256),
    )
    assert ours == explicit and ours.kv_cache > 2.5 * first.kv_cache and ours.weights > first.weights


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grid_size": 12, "base_size": 24}, "`grid_size` has to be a multiple of the `stride` 8"),
        ({"base_size": 20}, "`base_size` has to be a multiple of 8 but is 20"),
        ({"size_tag_token": "<side>"}, "`size_tag_token` has to hold {number} but is '<side>'"),
    ],
)
def test_descriptions_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        replace(CELLS, **values)


def test_codes_that_cannot_be():
    with pytest.raises(ValueError, match="Of `prefix` and `first_id` exactly one"):
        CodeTokens()
    with pytest.raises(ValueError, match="`digits` has to hold ten different characters"):
        CodeTokens("<v", ">", digits="01")
    with pytest.raises(ValueError, match="Another family is known as 'cells'"):
        register_family(replace(CELLS, title="Another"))
    with pytest.raises(ValueError, match="`family` has to be a `ModelFamily` but is 'cells'"):
        register_family("cells")
