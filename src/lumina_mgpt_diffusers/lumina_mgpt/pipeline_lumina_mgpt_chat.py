# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

import torch
from diffusers.utils import replace_example_docstring

from .answer_decoding import AnswerDecoder
from .answer_sampling import AnswerSampling, Grammar, SampledImage, SampledText, SamplerSettings
from .chat_messages import Turns, read_messages, split_batch
from .conversation import ImagePart, LuminaMGPTConversation, TextPart
from .image_encoding import ImageInput, encode_images
from .pipeline_base import OUTPUT_TYPES, LuminaMGPTBasePipeline
from .pipeline_output import LuminaMGPTChatPipelineOutput
from .text_stream import TextStream
from .validation import (
    check_codes,
    check_crop_generator,
    check_generator,
    check_guidance_scale,
    check_integer,
    check_size,
    check_temperature,
    check_top_k,
)


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from lumina_mgpt_diffusers import LuminaMGPTChatPipeline, LuminaMGPTConversation

        >>> pipe = LuminaMGPTChatPipeline.from_pretrained("path/to/Lumina-mGPT-Omni", dtype=torch.bfloat16)
        >>> pipe.to("cuda")
        >>> pipe("Describe the image in detail. <|image|>", images="fox.png").text

        >>> conversation = LuminaMGPTConversation(torch.Generator().manual_seed(0))
        >>> night = pipe("Make it night. <|image|>", images="fox.png", conversation=conversation).images[0]
        >>> moon = pipe("Add a moon.", conversation=conversation).images[0]
        ```
"""


class LuminaMGPTChatPipeline(LuminaMGPTBasePipeline):
    r"""
    Pipeline for conversations with Lumina-mGPT (https://huggingface.co/papers/2408.02657): text and images in, text
    and images out.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods the
    library implements for all the pipelines (such as downloading or saving, running on a particular device, etc.)

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Tokenizer of the Chameleon vocabulary, which names the image tokens.
        transformer ([`LuminaMGPTTransformer`]):
            Autoregressive transformer over text and image tokens.
        vqvae ([`VQModel`]):
            Encodes the images of the conversation and decodes those of the answers.
        scheduler ([`LuminaMGPTScheduler`]):
            The sampler and its settings.
    """

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        messages: str | list[dict] | list[str | list[dict]],
        images: ImageInput | list | None = None,
        conversation: LuminaMGPTConversation | list[LuminaMGPTConversation] | None = None,
        max_new_tokens: int = 10240,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        text_temperature: float | None = None,
        text_top_k: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        crop_generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> LuminaMGPTChatPipelineOutput | list[LuminaMGPTChatPipelineOutput] | tuple | list[tuple]:
        r"""
        Answer one conversation, or several at once.

        In an answer only what is well formed can be sampled: text without control tokens, and images whose size tags
        are a grid of at most the trained area and aspect ratio. An answer that reaches `max_new_tokens` is cut off:
        `finish_reason` says so, an image that it was in keeps what it has, and the conversation can go on.

        Args:
            messages (`str` or `list[dict]`, or a list of these):
                The conversation up to the turn to be answered: a string for one turn of the user, or messages
                `{"role": "user" or "assistant", "content": …}`, in turns. The content is a string or a list of
                `{"type": "text", "text": …}` and `{"type": "image", "image": …}` parts (or with `url` or `path`; or
                without any of them for the next one of `images`), or of parts of an answer. A list of strings or of
                lists of messages is a batch.
            images (`ImageInput` or a list of them, *optional*):
                The images that the messages leave open: those of image parts without an image, or else those marked by
                `<|image|>` in the text, or if nothing is marked, images before the first turn. Without `images`, and
                beside image parts, `<|image|>` in a text is just text. For a batch a list with one element, which may
                be a list or None, for each conversation.
            conversation ([`LuminaMGPTConversation`], *optional*):
                The state of a conversation to go on with, or a new one to begin. `messages` are then only what is new,
                and its cache is kept for the next call. For a batch a list.
            max_new_tokens (`int`, defaults to 10240):
                Most tokens of an answer. An image of 768x768 has 2356.
            height (`int`, *optional*), width (`int`, *optional*):
                Size in pixels that all images of the answers are forced to. By default the model chooses.
            guidance_scale (`float`, *optional*):
                Scale s of classifier-free guidance of images, `unconditional + s * (conditional - unconditional)`,
                where the unconditional branch sees the image alone; 1 turns it off. By default the scheduler's, as for
                the other sampler settings.
            temperature (`float`, *optional*):
                Divides the logits of images and their size tags; 0 takes the most likely.
            top_k (`int`, *optional*):
                Number of codes that may be drawn, 0 for all.
            text_temperature (`float`, *optional*):
                Divides the logits of text; 0 takes the most likely token.
            text_top_k (`int`, *optional*):
                Number of text tokens that may be drawn, 0 for all.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One for each conversation; a single one for a batch seeds them in order. A conversation keeps its
                generator for its next calls. Without one, answers are random; the global random state is neither
                used nor changed.
            crop_generator (`torch.Generator`, *optional*):
                Crops input images at random places, as in training. By default they are cropped at the centre.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"`, or `"latent"` for the VQ codes of the images.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`LuminaMGPTChatPipelineOutput`] or a tuple of its fields.

        Examples:

        Returns:
            [`LuminaMGPTChatPipelineOutput`] or `tuple`: The answer, or for a batch a list of them.

        Raises:
            `ValueError`: If an argument is wrong, before any model runs.
        """
        messages, images, conversations, is_batch = split_batch(messages, images, conversation)
        decoder, conversations = self._prepare(
            messages,
            images,
            conversations,
            max_new_tokens,
            height,
            width,
            guidance_scale,
            temperature,
            top_k,
            text_temperature,
            text_top_k,
            generator,
            crop_generator,
            output_type,
            is_batch,
        )
        pieces: list[list[SampledText | SampledImage]] = [[] for _ in messages]
        for index, piece in self._sample(decoder, conversations):
            pieces[index].append(piece)
        answers = decoder.answers
        del decoder  # and its KV cache, before the VQ model needs memory

        outputs = []
        for answer, own_pieces, own_conversation in zip(answers, pieces, conversations):
            parts = merge_text(self._to_parts(own_pieces, output_type))
            outputs.append(
                LuminaMGPTChatPipelineOutput(parts, answer.finish_reason, answer.token_ids, own_conversation)
            )
        self.maybe_free_model_hooks()
        if not return_dict:
            outputs = [output.to_tuple() for output in outputs]
        return outputs if is_batch else outputs[0]

    @torch.no_grad()
    def stream(
        self,
        messages: str | list[dict],
        images: ImageInput | list | None = None,
        conversation: LuminaMGPTConversation | None = None,
        max_new_tokens: int = 10240,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        text_temperature: float | None = None,
        text_top_k: int | None = None,
        generator: torch.Generator | None = None,
        crop_generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> Iterator[TextPart | ImagePart]:
        r"""
        Answer one conversation, to be read while the model writes.

        The arguments are those of [`__call__`], and so is the answer. They are checked at once; the sampling goes on
        as the iterator is asked for more. If it is closed early, the answer ends there, and the conversation with it.

        Yields:
            [`TextPart`] or [`ImagePart`]: A piece of text, as soon as its characters are whole, or an image, as soon
            as it is finished.

        Examples:
            ```py
            >>> for part in pipe.stream("Tell a story with two pictures."):
            ...     if isinstance(part, ImagePart):
            ...         part.image.show()
            ...     else:
            ...         print(part.text, end="", flush=True)
            ```
        """
        if split_batch(messages, None, None)[-1]:
            raise ValueError("`messages` has to be one conversation to be streamed but is a batch of them.")
        decoder, conversations = self._prepare(
            [messages],
            [images],
            [conversation],
            max_new_tokens,
            height,
            width,
            guidance_scale,
            temperature,
            top_k,
            text_temperature,
            text_top_k,
            generator,
            crop_generator,
            output_type,
            is_batch=False,
        )
        return self._stream(decoder, conversations, output_type)

    @torch.no_grad()
    def _stream(
        self, decoder: AnswerDecoder, conversations: list[LuminaMGPTConversation], output_type: str
    ) -> Iterator[TextPart | ImagePart]:
        try:
            with closing(self._sample(decoder, conversations)) as pieces:
                yield from self._to_parts((piece for _, piece in pieces), output_type)
        finally:
            self.maybe_free_model_hooks()

    def check_inputs(
        self,
        conversations: Sequence[LuminaMGPTConversation | None],
        turns: Sequence[Turns],
        max_new_tokens: int,
        height: int | None,
        width: int | None,
        settings: SamplerSettings,
        generator: torch.Generator | list[torch.Generator] | None,
        crop_generator: torch.Generator | None,
        output_type: str,
    ) -> None:
        """Check the arguments of [`__call__`], defaults filled in. Raises a `ValueError` that names the wrong one."""
        if self.tokenizer is None:
            raise ValueError("This pipeline has no tokenizer, without which it cannot encode `messages`.")
        vocabulary = self.image_vocabulary
        check_integer("max_new_tokens", max_new_tokens, least=1)
        if (height is None) != (width is None):
            raise ValueError(
                f"`height` and `width` have to be given both, to force the size, or neither, but are {height!r} and"
                f" {width!r}."
            )
        if height is not None:
            check_size(height, width, self.scheduler.config.resolution, vocabulary.max_side)
        check_guidance_scale(settings.guidance_scale)
        check_temperature(settings.temperature)
        check_temperature(settings.text_temperature, "text_temperature")
        check_top_k(settings.top_k)
        check_top_k(settings.text_top_k, "text_top_k")
        check_generator(generator, len(turns))
        check_crop_generator(crop_generator)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` has to be one of {list(OUTPUT_TYPES)} but is {output_type!r}.")
        given = [conversation for conversation in conversations if conversation is not None]
        if not all(isinstance(conversation, LuminaMGPTConversation) for conversation in given):
            raise ValueError(f"`conversation` has to be a `LuminaMGPTConversation` but is {given[0]!r}.")
        if len({id(conversation) for conversation in given}) < len(given):
            raise ValueError("`conversation` has to be another one for each element of the batch but holds one twice.")
        for own in turns:
            for image in own.images:
                if isinstance(image, torch.Tensor):
                    check_codes("images", image, vocabulary)

    def _prepare(
        self,
        messages: list,
        images: list,
        conversations: list[LuminaMGPTConversation | None],
        max_new_tokens: int,
        height: int | None,
        width: int | None,
        guidance_scale: float | None,
        temperature: float | None,
        top_k: int | None,
        text_temperature: float | None,
        text_top_k: int | None,
        generator: torch.Generator | list[torch.Generator] | None,
        crop_generator: torch.Generator | None,
        output_type: str,
        is_batch: bool,
    ) -> tuple[AnswerDecoder, list[LuminaMGPTConversation]]:
        # 1. Fill in the defaults and check the arguments
        config = self.scheduler.config
        settings = SamplerSettings(
            guidance_scale=config.guidance_scale if guidance_scale is None else guidance_scale,
            temperature=config.temperature if temperature is None else temperature,
            top_k=(config.top_k or 0) if top_k is None else top_k,
            text_temperature=config.text_temperature if text_temperature is None else text_temperature,
            text_top_k=(config.text_top_k or 0) if text_top_k is None else text_top_k,
        )
        names = [f"messages[{index}]" if is_batch else "messages" for index in range(len(messages))]
        turns = [read_messages(*arguments) for arguments in zip(messages, images, names)]
        self.check_inputs(
            conversations, turns, max_new_tokens, height, width, settings, generator, crop_generator, output_type
        )
        keep_caches = [conversation is not None for conversation in conversations]
        conversations = [conversation or LuminaMGPTConversation() for conversation in conversations]
        assign_generators(conversations, generator)
        self._guidance_scale = settings.guidance_scale
        self._interrupt = False
        if height is not None:
            self._warn_of_size(height, width)

        # 2. Encode the turns
        contexts = [
            self._encode_turns(own, conversation.token_ids, crop_generator)
            for own, conversation in zip(turns, conversations)
        ]

        # 3. Prepare the answers
        device = self._execution_device
        size = None if height is None else (height, width)
        grammar = Grammar.from_tokenizer(self.tokenizer, self.image_vocabulary, config.resolution, size)
        taken = [conversation.take_cache() for conversation in conversations]
        answers = [
            AnswerSampling(
                index,
                self.scheduler,
                grammar,
                settings,
                context,
                num_cached,
                max_new_tokens,
                conversation.generator,
                device,
            )
            for index, (context, (_, num_cached), conversation) in enumerate(zip(contexts, taken, conversations))
        ]
        caches = [cache for cache, _ in taken]
        return AnswerDecoder(self.transformer, answers, caches, keep_caches, device), conversations

    def _encode_turns(
        self, turns: Turns, before: list[int], crop_generator: torch.Generator | None = None
    ) -> list[int]:
        resolution, device = self.scheduler.config.resolution, self._execution_device
        codes = encode_images(self.vqvae, turns.images, resolution, device, crop_generator)
        vocabulary = self.image_vocabulary
        ids = turns.encode(self.tokenizer, [vocabulary.to_tokens(one).tolist() for one in codes])
        return [*before, *ids[1:]] if before else ids

    def _sample(
        self, decoder: AnswerDecoder, conversations: list[LuminaMGPTConversation]
    ) -> Iterator[tuple[int, SampledText | SampledImage]]:
        """Run the decoder to its end. However that comes, the conversations go on from there."""
        answers = decoder.answers
        num_tokens = 0
        try:
            with self.progress_bar(total=sum(answer.max_new_tokens for answer in answers)) as progress_bar:
                while not decoder.is_finished and not self.interrupt:
                    yield from decoder.step()
                    self._warn_of_length(max(len(answer.sequence) for answer in answers))
                    progress_bar.update(sum(answer.num_tokens for answer in answers) - num_tokens)
                    num_tokens = sum(answer.num_tokens for answer in answers)
            yield from decoder.stop()
        except GeneratorExit:
            decoder.stop()
            raise
        finally:
            for answer, conversation, cache in zip(answers, conversations, decoder.caches):
                if answer.is_finished:
                    conversation.extend(answer.sequence, answer.finish_reason, cache, answer.num_cached)

    def _to_parts(
        self, pieces: Iterable[SampledText | SampledImage], output_type: str
    ) -> Iterator[TextPart | ImagePart]:
        text = TextStream(self.tokenizer)
        for piece in pieces:
            if isinstance(piece, SampledText):
                new = text.push(piece.ids)
                if new:
                    yield TextPart(new)
                continue
            rest = text.flush()
            if rest:
                yield TextPart(rest)
            yield self._to_image_part(piece, output_type)
        rest = text.flush()
        if rest:
            yield TextPart(rest)

    def _to_image_part(self, piece: SampledImage, output_type: str) -> ImagePart:
        image = None
        if piece.codes is not None and bool((piece.codes >= 0).any()):
            if output_type == "latent":
                image = piece.codes
            else:
                decoded = self.decode_codes(piece.codes[None].to(self._execution_device))
                image = self.image_processor.postprocess(decoded, output_type=output_type)[0]
        return ImagePart(image, piece.codes, piece.is_complete)


def assign_generators(
    conversations: Sequence[LuminaMGPTConversation], generator: torch.Generator | list[torch.Generator] | None
) -> None:
    """Give the conversations the generators of a call, those without any a random one."""
    for index, conversation in enumerate(conversations):
        if isinstance(generator, list):
            conversation.generator = generator[index]
        elif generator is not None and len(conversations) == 1:
            conversation.generator = generator
        elif generator is not None:
            seed = torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device)
            conversation.generator = torch.Generator(generator.device).manual_seed(int(seed))
        elif conversation.generator is None:
            conversation.generator = torch.Generator()
            conversation.generator.seed()  # from the system: the global random state stays as it is


def merge_text(parts: Iterable[TextPart | ImagePart]) -> list[TextPart | ImagePart]:
    """The parts with pieces of text that follow one another as one."""
    merged: list[TextPart | ImagePart] = []
    for part in parts:
        if isinstance(part, TextPart) and merged and isinstance(merged[-1], TextPart):
            merged[-1] = TextPart(merged[-1].text + part.text)
        else:
            merged.append(part)
    return merged
