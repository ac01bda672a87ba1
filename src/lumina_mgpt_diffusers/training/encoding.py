# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Samples as token ids and labels: what of it a worker process does, and what the VQ model is needed for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers import VQModel
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..lumina_mgpt.families import ModelFamily
from ..lumina_mgpt.image_encoding import load_images, nearest_entries, prepare_image
from ..lumina_mgpt.prompts import encode_conversation
from ..lumina_mgpt.unirep import ImageVocabulary
from .data_collator import IGNORED
from .samples import TEXT_TO_IMAGE, BadSampleError, Sample, SampleSource


WIDEST_ASPECT_RATIO = 16


@dataclass(frozen=True)
class Skipped:
    """
    A sample that is left out.

    Args:
        id (`str`): Where it comes from.
        reason (`str`): Why.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """
    A sample that only lacks the codes of its images.

    Args:
        id (`str`): Where it comes from.
        token_ids (`list[int]`): Token ids, with `-1 - n` for the n-th image.
        is_learnt (`list[bool]`): Whether each of them is learnt.
        images (`list[np.ndarray]`): Images of trained sizes, `(height, width, 3)`, uint8.
    """

    id: str
    token_ids: list[int]
    is_learnt: list[bool]
    images: list[np.ndarray]


@dataclass(frozen=True)
class EncodingSettings:
    """
    What decides the tokens of a sample, beside the models.

    Args:
        base_size (`int`): Base size in pixels, from which the trained sizes follow.
        max_length (`int`, *optional*): Longest sample in tokens.
        truncate (`bool`, defaults to `False`): Whether longer ones are cut off, as the original does, not left out.
        random_crop (`bool`, defaults to `False`): Whether images are cropped at random places, not at the centre.
        seed (`int`, defaults to 0): Decides these places.
    """

    base_size: int
    max_length: int | None = None
    truncate: bool = False
    random_crop: bool = False
    seed: int = 0


class PreparedSamples(Dataset):
    """
    Samples of a source as [`Prepared`] or, where one cannot be trained on, [`Skipped`].

    Args:
        source ([`SampleSource`]): The samples.
        indices (`Sequence[int]`): Those wanted.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): The tokenizer.
        vocabulary ([`ImageVocabulary`]): Token ids of the image language.
        settings ([`EncodingSettings`]): The settings.
        family ([`ModelFamily`]): Has the prompts.
    """

    def __init__(
        self,
        source: SampleSource,
        indices: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: ImageVocabulary,
        settings: EncodingSettings,
        family: ModelFamily,
    ) -> None:
        self.source = source
        self.indices = indices
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.settings = settings
        self.family = family

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Prepared | Skipped:
        index = self.indices[place]
        try:
            sample = self.source[index]
            generator = None
            if self.settings.random_crop:
                generator = torch.Generator().manual_seed(_mix(self.settings.seed, index))
            images = [self._prepare(image, generator) for image in sample.images]
            return self._encode(sample, images)
        except Exception as error:
            # Whatever is wrong with one file of millions, the others are encoded.
            return Skipped(self.source.name_of(index), str(error) or type(error).__name__)

    def _prepare(self, image: str | bytes, generator: torch.Generator | None) -> np.ndarray:
        opened = PIL.Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
        (loaded,) = load_images(opened)
        if max(loaded.size) > WIDEST_ASPECT_RATIO * min(loaded.size):
            raise BadSampleError(
                f"an image of {loaded.width}x{loaded.height} (width x height) exceeds the aspect ratio of"
                f" {WIDEST_ASPECT_RATIO}, of which little would be left"
            )
        return np.asarray(prepare_image(loaded, self.settings.base_size, generator, self.family.grid_size))

    def _encode(self, sample: Sample, images: list[np.ndarray]) -> Prepared:
        sizes = [image.shape[:2] for image in images]
        for height, width in sizes:
            if max(height, width) > self.vocabulary.max_side:
                raise BadSampleError(f"the tokenizer has no size tag for an image of {height}x{width}")
        token_ids, is_learnt = [], []
        num_images = 0
        for message in sample.messages:
            parts = []
            for part in message["content"]:
                if part["type"] == TEXT_TO_IMAGE:
                    text = self.family.text_to_image_prompt(part["prompt"], *sizes[num_images])
                    part = {"type": "text", "text": text}
                parts.append(part)
            in_turn = sum(part["type"] == "image" for part in parts)
            marks = [[-1 - number] for number in range(num_images, num_images + in_turn)]
            num_images += in_turn
            bos, *turn = encode_conversation(self.tokenizer, [{"content": parts}], marks, self.family)
            if not token_ids:
                token_ids, is_learnt = [bos], [False]
            token_ids += turn
            is_learnt += [message["role"] == "assistant"] * len(turn)
        length = len(token_ids) + sum(self.vocabulary.num_tokens(*size) - 1 for size in sizes)
        max_length = self.settings.max_length
        if max_length is not None and length > max_length and not self.settings.truncate:
            raise BadSampleError(f"it has {length} tokens, more than the {max_length} of `max_length`")
        return Prepared(sample.id, token_ids, is_learnt, images)


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@torch.no_grad()
def encode_batch(vqvae: VQModel, images: Sequence[np.ndarray]) -> torch.LongTensor:
    """
    VQ codes of images of one size.

    Args:
        vqvae ([`VQModel`]): The VQ model.
        images (`list[np.ndarray]`): Images `(height, width, 3)`, uint8.

    Returns:
        `torch.LongTensor` of shape `(batch_size, height / stride, width / stride)`: The codes, on the CPU.
    """
    pixels = torch.from_numpy(np.stack(images)).to(vqvae.device)
    pixels = (pixels.float() / 255 * 2 - 1).permute(0, 3, 1, 2).to(vqvae.dtype)
    latents = vqvae.encode(pixels).latents  # (batch, channels, rows, columns)
    codebook = vqvae.quantize.embedding.weight
    vectors = latents.permute(0, 2, 3, 1).flatten(1, 2)
    codes = [nearest_entries(of_one, codebook) for of_one in vectors]
    return torch.stack(codes).view(len(images), *latents.shape[2:]).cpu()


def insert_images(
    prepared: Prepared, codes: Sequence[torch.LongTensor], vocabulary: ImageVocabulary, max_length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Token ids and labels of a sample.

    Args:
        prepared ([`Prepared`]): The sample.
        codes (`list[torch.LongTensor]`): VQ codes of its images.
        vocabulary ([`ImageVocabulary`]): Token ids of the image language.
        max_length (`int`, *optional*): Tokens after which the sample is cut off.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Token ids, and labels with -100 where nothing is learnt; int32.
    """
    token_ids, is_learnt = [], []
    for id, learnt in zip(prepared.token_ids, prepared.is_learnt):
        tokens = [id] if id >= 0 else vocabulary.to_tokens(codes[-1 - id]).tolist()
        token_ids += tokens
        is_learnt += [learnt] * len(tokens)
    ids = np.array(token_ids[:max_length], dtype=np.int32)
    return ids, np.where(is_learnt[:max_length], ids, np.int32(IGNORED)).astype(np.int32)
