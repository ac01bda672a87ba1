# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import copy
import gc
import json
import time
import weakref

import numpy as np
import pytest
import torch

from lumina_mgpt_diffusers import LUMINA_MGPT
from lumina_mgpt_diffusers.lumina_mgpt.unirep import (
    MalformedImageError,
    fill_missing_codes,
    nearest_size,
    trained_sizes,
)
from lumina_mgpt_diffusers.lumina_mgpt.vocabulary import _KNOWN, from_names, read_vocabulary


START, END, ROW_END, TAG_0 = 8197, 8196, 8803, 8804
code_name = LUMINA_MGPT.codes.name

SIZES = ["64x64", "64x96", "96x64", "128x32"]  # width x height


@pytest.fixture(scope="module")
def vocabulary(random_pipe):
    return random_pipe.image_vocabulary


@pytest.fixture(scope="module")
def decoded(fixtures):
    return np.load(fixtures / "7b_like" / "decode.npz")


@pytest.fixture
def tokens(decoded):
    """One whole image of 6 rows of 4 codes."""
    return decoded["tokens/64x96"].tolist()


def test_trained_sizes_are_the_originals(fixtures):
    golden = json.loads((fixtures / "7b_like" / "crop_size_lists.json").read_text())
    assert {"64", "96", "128", "256", "512", "768", "1024"} == set(golden)
    for base_size, sizes in golden.items():
        assert tuple((height, width) for width, height in sizes) == trained_sizes(int(base_size))


def test_number_of_trained_sizes_and_tokens(vocabulary):
    for base_size, number, least, most in ((512, 49, 916, 1092), (768, 73, 2140, 2404), (1024, 97, 3846, 4228)):
        lengths = [vocabulary.num_tokens(height, width) for height, width in trained_sizes(base_size)]
        assert (len(lengths), min(lengths), max(lengths)) == (number, least, most)


@pytest.mark.parametrize("size", trained_sizes(768))
def test_trained_size_is_nearest_to_itself_or_wider_of_the_same_shape(size):
    nearest = nearest_size(*size, 768)
    assert nearest[0] * size[1] == nearest[1] * size[0]
    assert nearest[1] >= size[1]


def test_nearest_size_follows_aspect_ratio():
    assert nearest_size(1000, 1000, 768) == (768, 768)
    assert nearest_size(10, 1000, 768) == (384, 1536)
    assert nearest_size(1000, 10, 768) == (1536, 384)


def test_ids_come_from_names(vocabulary):
    assert (vocabulary.start_id, vocabulary.end_id, vocabulary.row_end_id) == (START, END, ROW_END)
    assert vocabulary.separator_id == 8710
    assert vocabulary.size_tag_ids[:3] == (TAG_0 + 1, TAG_0 + 2, TAG_0 + 3)
    assert vocabulary.code_range == (4, 8196)
    assert vocabulary.prefix(96, 64) == [START, TAG_0 + 3, TAG_0 + 2]


def test_code_names():
    assert [code_name(code) for code in (0, 9, 10, 8191)] == ["IMGIMGAZ", "IMGIMGJZ", "IMGIMGBAZ", "IMGIMGIBJBZ"]


def test_code_order_is_that_of_the_names():
    # As one original tokenizer has it: ids in lexicographic order of the names.
    names = sorted(code_name(code) for code in range(8192))
    ids = {name: 4 + index for index, name in enumerate(names)}
    others = {"<racm3:break>": 9000, "<eoss>": 9001, "<reserved08799>": 9002, "<reserved08706>": 9003}
    names = {**ids, **others, "<reserved08801>": 9004, "<reserved08802>": 9005}
    vocabulary = from_names(names, 8192, 16, LUMINA_MGPT)
    codes = torch.tensor([[0, 10], [100, 8191]])
    tokens = vocabulary.to_tokens(codes)
    assert tokens.tolist() == [9000, 9004, 9004, ids["IMGIMGAZ"], ids["IMGIMGBAZ"], 9002, ids["IMGIMGBAAZ"],
                               ids["IMGIMGIBJBZ"], 9002, 9001]  # fmt: skip
    assert ids["IMGIMGBAZ"] != 14
    assert torch.equal(vocabulary.to_codes(tokens), codes)


def test_missing_names_are_named():
    with pytest.raises(ValueError, match=r"lacks 5 of the needed tokens, the first of them '<racm3:break>'"):
        from_names({code_name(0): 4}, 2, 16, LUMINA_MGPT)


@pytest.mark.parametrize("size", SIZES)
def test_tokens_and_codes_are_the_originals(vocabulary, decoded, size):
    width, height = map(int, size.split("x"))
    codes = torch.from_numpy(decoded[f"img_idx/{size}"]).view(height // 16, width // 16)
    tokens = torch.from_numpy(decoded[f"tokens/{size}"])
    assert torch.equal(vocabulary.to_tokens(codes), tokens)
    assert torch.equal(vocabulary.to_codes(tokens), codes)
    assert len(tokens) == vocabulary.num_tokens(height, width)


def edited(tokens, index, value):
    return [*tokens[:index], value, *tokens[index + 1 :]]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: [], "at least 4 tokens but the sequence has 0"),
        (lambda t: [START], "at least 4 tokens but the sequence has 1"),
        (lambda t: t[1:], f"Index 0 has to hold the start token {START} but holds {TAG_0 + 3}"),
        (lambda t: t[:-1], "6x4 codes, 34 tokens, but the sequence has 33"),
        (lambda t: [*t, END], "6x4 codes, 34 tokens, but the sequence has 35"),
        (lambda t: [*t[:-1], ROW_END], f"Index 33 has to hold the end token {END}"),
        (lambda t: edited(t, 1, 17), "Index 1 has to hold the height tag"),
        (lambda t: edited(t, 2, TAG_0), "Index 2 has to hold the width tag"),
        (lambda t: edited(t, 2, 99999), "Index 2 has to hold the width tag"),
        (lambda t: edited(t, 1, TAG_0 + 100), "200x4 codes, 1004 tokens, but the sequence has 34"),
        (lambda t: edited(t, 12, 7), f"Index 12 has to hold the end of row 1, {ROW_END}, but holds 7"),
        (lambda t: edited(t, 9, END), rf"Index 9 has to hold a code \(row 1, column 1\) but holds token id {END}"),
        (lambda t: edited(t, 3, 3), r"Index 3 has to hold a code \(row 0, column 0\)"),
        (lambda t: edited(t, 3, -5), r"Index 3 has to hold a code \(row 0, column 0\)"),
        (lambda t: edited(t, 31, 1 << 40), r"Index 31 has to hold a code \(row 5, column 3\)"),
    ],
)  # fmt: skip
def test_malformed_sequences_say_what_is_wrong_and_where(vocabulary, tokens, change, message):
    with pytest.raises(MalformedImageError, match=message):
        vocabulary.to_codes(change(tokens))


@pytest.mark.parametrize(
    "values", [None, 3.5, "3", ["a"], {1: 2}, [[1], [2, 3]], [2**63], [0.5] * 9, torch.zeros(9, dtype=torch.bool)]
)
def test_what_is_no_sequence_of_token_ids_is_refused(vocabulary, values):
    with pytest.raises(MalformedImageError, match="`token_ids` have to be integers but are"):
        vocabulary.to_codes(values)
    for tensor in (torch.zeros(9, dtype=torch.long, device="meta"), torch.zeros(9, dtype=torch.long).to_sparse()):
        with pytest.raises(MalformedImageError, match="`token_ids` have to be integers"):
            vocabulary.to_codes(tensor)


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.zeros(4, dtype=torch.long), r"of shape \(rows, columns\) but are of shape \(4,\)"),
        (torch.zeros(3, 4, dtype=torch.long), "number of rows of `codes` has to be a multiple of 2 .* but is 3"),
        (torch.zeros(4, 400, dtype=torch.long), "number of columns of `codes` .* at most 200 but is 400"),
        (torch.full((2, 2), 8192), r"in \[0, 8192\) but range from 8192 to 8192"),
        (torch.full((2, 2), -1), r"in \[0, 8192\) but range from -1 to -1"),
    ],
)
def test_bad_codes_are_refused(vocabulary, codes, message):
    with pytest.raises(ValueError, match=message):
        vocabulary.to_tokens(codes)


def test_missing_codes_are_filled_from_above_then_from_the_left():
    codes = torch.tensor([[-1, 5, -1], [7, -1, -1]])
    assert fill_missing_codes(codes).tolist() == [[0, 5, 5], [7, 5, 5]]
    assert codes[0, 0] == -1


@pytest.mark.parametrize("base_size", [320000, 32, 40])
def test_sizes_of_any_base_size_are_found_at_once(base_size):
    begin = time.perf_counter()
    sizes = trained_sizes(base_size)
    assert nearest_size(7, 7, base_size) in sizes
    assert time.perf_counter() - begin < 1
    assert all(
        height * width <= base_size**2 and max(height, width) <= 4 * min(height, width) for height, width in sizes
    )
    assert sizes[-1] == sizes[0][::-1]


def test_the_ids_of_a_tokenizer_are_read_once(random_pipe):
    tokenizer = copy.deepcopy(random_pipe.tokenizer)
    gc.collect()
    before = len(_KNOWN)
    vocabulary = read_vocabulary(tokenizer, 8192, 16)
    assert read_vocabulary(tokenizer, 8192, 16) is vocabulary
    assert read_vocabulary(tokenizer, 8192, 8) is not vocabulary
    assert torch.equal(vocabulary.code_ids, random_pipe.image_vocabulary.code_ids)
    num_tags = len(vocabulary.size_tag_ids)
    tokenizer.add_tokens([f"<reserved{8800 + num_tags + 1:05d}>"])
    assert len(read_vocabulary(tokenizer, 8192, 16).size_tag_ids) == num_tags + 1
    assert len(_KNOWN) == before + 1
    reference = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert reference() is None and len(_KNOWN) == before


def test_ids_are_plain_tensors_on_the_cpu_wherever_they_are_read_first(random_pipe):
    tokenizer = copy.deepcopy(random_pipe.tokenizer)
    with torch.inference_mode(), torch.device("meta"):
        code_ids = read_vocabulary(tokenizer, 8192, 16).code_ids
    assert code_ids.device.type == "cpu" and not code_ids.is_inference()


def test_a_vocabulary_of_another_stride_and_number_of_codes():
    num_codes = 16384
    names = {code_name(code): 100 + code for code in range(num_codes)}
    control = ["<racm3:break>", "<eoss>", "<reserved08799>", "<reserved08706>", "<reserved08801>", "<reserved08802>"]
    names |= {name: index for index, name in enumerate(control)}
    vocabulary = from_names(names, num_codes, 8, LUMINA_MGPT)
    codes = torch.arange(32).view(4, 8) + num_codes - 32
    tokens = vocabulary.to_tokens(codes)
    assert tokens[:3].tolist() == vocabulary.prefix(32, 64) == [0, 4, 5]
    assert len(tokens) == vocabulary.num_tokens(32, 64)
    assert torch.equal(vocabulary.to_codes(tokens), codes)
