# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The tokenizer of the pocket model: byte-level BPE trained on what is said in the small world, with the control tokens
and the image tokens of the released models under their names.
"""

from __future__ import annotations

from collections.abc import Iterator

from tasks import EXAMPLES, draw_example
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lumina_mgpt_diffusers import LUMINA_MGPT
from lumina_mgpt_diffusers.lumina_mgpt.prompts import chat_template


MOST_GRIDS = 24
"""Longest side of an image that has a size tag, in grids of 32 px."""


def sentences(num_examples: int) -> Iterator[str]:
    for task in EXAMPLES:
        for index in range(num_examples):
            for turn in draw_example(task, "train", index, base_size=64).turns:
                yield from turn


def make_tokenizer(num_codes: int, num_texts: int = 704, num_examples: int = 400) -> PreTrainedTokenizerFast:
    """
    Train the tokenizer.

    Args:
        num_codes (`int`): Size of the codebook.
        num_texts (`int`, defaults to 704): Number of tokens for text, of which 256 are the bytes.
        num_examples (`int`, defaults to 400): Samples of each task to train on.
    """
    family = LUMINA_MGPT
    control = ["<s>", "<pad>", "</s>", "<unk>", *map(family.codes.name, range(num_codes))]
    control += [family.end_token, family.start_token, family.separator_token, "<image>", family.row_end_token]
    control += map(family.size_tag, range(1, MOST_GRIDS + 1))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(control) + num_texts,
        special_tokens=control,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(num_examples), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=family.separator_token,
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template(fast, family)
    return fast
