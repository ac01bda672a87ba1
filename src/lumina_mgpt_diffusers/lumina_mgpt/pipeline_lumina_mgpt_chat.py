# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

import torch
from diffusers.utils import replace_example_docstring

from .answer_reader import AnswerReader
from .calls import Call, arguments_of, call_arguments, stream_signature
from .chat_messages import Turns, read_messages, split_batch
from .conversation import ImagePart, LuminaMGPTConversation, TextPart
from .engine import Engine
from .image_encoding import ImageInput
from .noise import draw_key, take_back_key
from .pipeline_base import OUTPUT_TYPES, LuminaMGPTBasePipeline, start_generator
from .pipeline_output import LuminaMGPTChatPipelineOutput
from .request import Grammar, Request
from .row import Row, SampledImage, SampledText
from .validation import (
    check_choice,
    check_codes,
    check_crop_generator,
    check_drafts,
    check_flag,
    check_generator,
    check_integer,
    check_size,
    shown,
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


MAX_NEW_TOKENS = 1 << 20


class Answers:
    """
    The answers of a call: `begin`, then `sample`, then `commit`, and `end` however it ends.

    Args:
        pipe ([`LuminaMGPTChatPipeline`]): The pipeline.
        call ([`Call`]): Says when to stop.
        engine ([`Engine`]): The engine.
        requests (`list[Request]`): What is to be answered, without the keys of their noise.
        conversations (`list[LuminaMGPTConversation]`): The conversation of each.
        befores (`list[list[int]]`): The tokens of each conversation that its turn was encoded after.
        generator (`torch.Generator` or `list[torch.Generator]`, *optional*): That of the call.
    """

    def __init__(
        self,
        pipe: LuminaMGPTChatPipeline,
        call: Call,
        engine: Engine,
        requests: Sequence[Request],
        conversations: Sequence[LuminaMGPTConversation],
        befores: Sequence[list[int]],
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> None:
        self.pipe, self.call, self.engine = pipe, call, engine
        self.requests, self.conversations, self.befores = requests, conversations, befores
        self.generator = generator
        self.rows: list[Row] = []
        self._turn = object()
        self._kind: tuple | None = None
        # What draws the noise of each, with its state before.
        self._drawn: list[tuple[torch.Generator, torch.Tensor]] = []

    def begin(self) -> None:
        """Have the conversations for this turn."""
        for conversation, before in zip(self.conversations, self.befores):
            conversation.begin_turn(self._turn, before)

    def commit(self) -> None:
        """Have each conversation go on from its answer as far as that came."""
        for row, conversation, (generator, _) in zip(self.rows, self.conversations, self._drawn):
            if row.error is None:
                conversation.extend(row.tokens, row.finish_reason, generator, row.cache, row.num_fed, self._kind)

    def end(self) -> None:
        """Leave the conversations that did not go on, with their generators as before."""
        for conversation, (generator, state) in zip(self.conversations, self._drawn):
            if conversation.is_in(self._turn):
                take_back_key(generator, state)
        for conversation in self.conversations:
            conversation.leave_turn(self._turn)

    @torch.no_grad()
    def sample(self) -> Iterator[tuple[int, SampledText | SampledImage]]:
        """Each piece with the index of its answer. Closed, the answers end there."""
        engine, self.engine = self.engine, None
        self.draw_keys()
        if any(request.keep_cache for request in self.requests):
            self._kind = engine.contents_kind()
        for request, conversation in zip(self.requests, self.conversations):
            request.cache, request.num_cached = conversation.take_cache(self._kind)
            self.rows.append(engine.submit(request))
        try:
            yield from self._pieces(engine)
        except GeneratorExit:
            for row in self.rows:
                engine.stop(row)
            raise

    def _pieces(self, engine: Engine) -> Iterator[tuple[int, SampledText | SampledImage]]:
        with self.pipe.progress_bar(total=sum(request.max_new_tokens for request in self.requests)) as progress_bar:
            self.pipe.lend(engine, self.requests)
            while not engine.is_idle and not self.call.interrupt:
                engine.step()
                for index, row in enumerate(self.rows):
                    if row.error is not None:
                        raise row.error
                    yield from ((index, piece) for piece in row.take_pieces())
                self.pipe._warn_of_length(max(len(row.tokens) for row in self.rows))
                progress_bar.update(sum(row.num_new_tokens for row in self.rows) - progress_bar.n)
        for index, row in enumerate(self.rows):
            engine.stop(row)
            yield from ((index, piece) for piece in row.take_pieces())
        self.pipe.keep(engine, self.requests)

    def draw_keys(self) -> None:
        """Give the requests the keys of their noise."""
        for index, request in enumerate(self.requests):
            generator = self._generator_of(index)
            self._drawn.append((generator, generator.get_state()))
            request.key = draw_key(generator)

    def _generator_of(self, index: int) -> torch.Generator:
        """The generator of a conversation from this turn on: that of the call, else its own, else a random one."""
        generator = self.generator
        if isinstance(generator, list):
            return generator[index]
        if generator is not None and len(self.conversations) == 1:
            return generator
        if generator is not None:
            return torch.Generator(generator.device).manual_seed(draw_key(generator))
        return self.conversations[index].generator or start_generator(None, 1)[0]


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
        top_p: float | None = None,
        min_p: float | None = None,
        num_draft_tokens: int | str | None = None,
        draft_init: str | None = None,
        load_from: tuple[str, ...] = (),
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
                where the unconditional branch sees the image alone; values of 1 and less turn it off. By default the
                scheduler's, as for the other sampler settings.
            temperature (`float`, *optional*):
                Divides the logits of images and their size tags; 0 takes the most likely.
            top_k (`int`, *optional*):
                Number of codes that may be drawn, 0 for all.
            text_temperature (`float`, *optional*):
                Divides the logits of text; 0 takes the most likely token.
            text_top_k (`int`, *optional*):
                Number of text tokens that may be drawn, 0 for all.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One for each conversation, from which each answer draws the key of its noise; a single one for a batch
                seeds them in order. A conversation keeps its generator for its next calls. Without one, answers are
                random; the global random state is neither used nor changed.
            crop_generator (`torch.Generator`, *optional*):
                Crops input images at random places, as in training. By default they are cropped at the centre.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"`, or `"latent"` for the VQ codes of the images.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`LuminaMGPTChatPipelineOutput`] or a tuple of its fields.
            top_p (`float`, *optional*):
                Only the most likely codes may be drawn whose probabilities just add up to this.
            min_p (`float`, *optional*):
                Only codes at least this times as likely as the most likely one may be drawn.
            num_draft_tokens (`int` or `"auto"`, *optional*):
                Number of tokens of an image that a forward evaluates ahead. It decides the speed, not the images.
            draft_init (`str`, *optional*):
                How codes are first guessed.
            load_from (`tuple[str, ...]`, defaults to `()`):
                What images in `messages` may be read from by a path or a URL: `"files"`, `"urls"`. Nothing, unless
                the messages are your own. `images` may always be paths and URLs.

        Examples:

        Returns:
            [`LuminaMGPTChatPipelineOutput`] or `tuple`: The answer, or for a batch a list of them.

        Raises:
            `ValueError`: If an argument is wrong, before any model runs.
        """
        return_dict = check_flag("return_dict", return_dict)
        answers, is_batch = self._start(**call_arguments(locals()))
        pieces: list[list[SampledText | SampledImage]] = [[] for _ in answers.requests]
        outputs = []
        try:
            answers.begin()
            for index, piece in answers.sample():
                pieces[index].append(piece)
            for row, conversation, own in zip(answers.rows, answers.conversations, pieces):
                parts = merge_text(self._to_parts(own, output_type))
                outputs.append(LuminaMGPTChatPipelineOutput(parts, row.finish_reason, row.token_ids, conversation))
            self.maybe_free_model_hooks()
            answers.commit()
        finally:
            answers.end()
        if not return_dict:
            outputs = [output.to_tuple() for output in outputs]
        return outputs if is_batch else outputs[0]

    def prepare(self, *args, **kwargs) -> Answers:
        """
        All that comes before sampling: check the arguments, which are those of [`stream`], and encode what goes in.

        For those who sample the requests themselves, many calls in one [`Engine`]. Conversations cannot be gone on
        with: pass all their messages.

        Returns:
            [`Answers`]: With a request for each answer. An [`answer_reader`] makes text and images of what is sampled.
        """
        arguments = arguments_of(self.stream, *args, **kwargs)
        if arguments["conversation"] is not None:
            raise ValueError("`conversation` has to be None here. Pass all messages of the conversation.")
        answers, _ = self._start(**arguments)
        answers.draw_keys()
        return answers

    def stream(self, *args, **kwargs) -> Iterator[TextPart | ImagePart]:
        r"""
        Answer one conversation, to be read while the model writes.

        The arguments are those of [`__call__`] but for `return_dict`, and so is the answer. They are checked at once;
        the sampling goes on as the iterator is asked for more. If it is closed early, the answer ends there, and the
        conversation with it.

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
        arguments = arguments_of(self.stream, *args, **kwargs)
        if split_batch(arguments["messages"], None, None)[-1]:
            raise ValueError("`messages` has to be one conversation to be streamed but is a batch of them.")
        answers, _ = self._start(**arguments)
        return self._stream(answers, arguments["output_type"])

    @torch.no_grad()
    def _stream(self, answers: Answers, output_type: str) -> Iterator[TextPart | ImagePart]:
        try:
            answers.begin()
            with closing(answers.sample()) as pieces:
                yield from self._to_parts((piece for _, piece in pieces), output_type)
            answers.commit()
        except GeneratorExit:
            answers.commit()
            raise
        finally:
            answers.end()
            self.maybe_free_model_hooks()

    @torch.no_grad()
    def _start(
        self,
        messages: object,
        images: object,
        conversation: object,
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
        top_p: float | None,
        min_p: float | None,
        num_draft_tokens: int | str | None,
        draft_init: str | None,
        load_from: tuple[str, ...],
    ) -> tuple[Answers, bool]:
        """Check the arguments and encode the turns. Gives the answers, to be sampled, and whether they are a batch."""
        # 1. Check the arguments and fill in the defaults
        self.check_components()
        if self.tokenizer is None:
            raise ValueError("This pipeline has no tokenizer, without which it cannot encode `messages`.")
        messages, images, conversations, is_batch = split_batch(messages, images, conversation)
        names = [f"messages[{index}]" if is_batch else "messages" for index in range(len(messages))]
        turns = [read_messages(*own, load_from) for own in zip(messages, images, names)]
        config, vocabulary = self.scheduler.config, self.image_vocabulary
        max_new_tokens = check_integer("max_new_tokens", max_new_tokens, least=1, most=MAX_NEW_TOKENS)
        if (height is None) != (width is None):
            raise ValueError(
                f"`height` and `width` have to be given both, to force the size, or neither, but are {height!r} and"
                f" {width!r}."
            )
        size = None
        if height is not None:
            size = check_size(height, width, config.resolution, vocabulary)
            self._warn_of_size(*size)
        settings = self.scheduler.settings(
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            text_temperature=text_temperature,
            text_top_k=text_top_k,
        )
        num_draft_tokens, draft_init = check_drafts(num_draft_tokens, draft_init)
        generator = check_generator(generator, len(turns))
        check_crop_generator(crop_generator)
        check_choice("output_type", output_type, OUTPUT_TYPES)
        given = [one for one in conversations if one is not None]
        for one in given:
            if not isinstance(one, LuminaMGPTConversation):
                raise ValueError(f"`conversation` has to be a `LuminaMGPTConversation` but is {shown(one)}.")
            one.check_free()
        if len({id(one) for one in given}) < len(given):
            raise ValueError("`conversation` has to be another one for each element of the batch but holds one twice.")
        for own in turns:
            for image in own.images:
                if isinstance(image, torch.Tensor):
                    check_codes("images", image, vocabulary)

        # 2. Encode the turns
        befores = [[] if one is None else list(one.token_ids) for one in conversations]
        contexts = [self._encode_turns(own, before, crop_generator) for own, before in zip(turns, befores)]
        requests = [
            Request(
                context=context,
                settings=settings,
                unconditional_context=self.unconditional_context,
                size=size,
                max_new_tokens=max_new_tokens,
                keep_cache=one is not None,
            )
            for context, one in zip(contexts, conversations)
        ]

        # 3. Prepare the answers
        grammar = Grammar.from_tokenizer(self.tokenizer, vocabulary, config.resolution, self.can_draw)
        engine = Engine(
            self.transformer, self.scheduler, grammar, self._execution_device, num_draft_tokens, draft_init
        )
        call = self._last_call = Call(settings.guidance_scale)
        conversations = [one or LuminaMGPTConversation() for one in conversations]
        return Answers(self, call, engine, requests, conversations, befores, generator), is_batch

    def _encode_turns(
        self, turns: Turns, before: list[int], crop_generator: torch.Generator | None = None
    ) -> list[int]:
        codes = self._encode_images_to_codes(turns.images, crop_generator)
        vocabulary = self.image_vocabulary
        ids = turns.encode(self.tokenizer, [vocabulary.to_tokens(one).tolist() for one in codes], self.family)
        return [*before, *ids[1:]] if before else ids

    def _to_parts(
        self, pieces: Iterable[SampledText | SampledImage], output_type: str
    ) -> Iterator[TextPart | ImagePart]:
        reader = self.answer_reader(output_type)
        for piece in pieces:
            yield from reader.read(piece)
        yield from reader.rest()

    def answer_reader(self, output_type: str = "pil") -> AnswerReader:
        """What turns the pieces that an engine samples of one answer into text and images, see [`AnswerReader`]."""
        return AnswerReader(self.tokenizer, functools.partial(self._to_image_part, output_type=output_type))

    def _to_image_part(self, piece: SampledImage, output_type: str) -> ImagePart:
        image = None
        if piece.codes is not None and bool((piece.codes >= 0).any()):
            if output_type == "latent":
                image = piece.codes
            else:
                image = self.decode_images(piece.codes[None].to(self._execution_device), output_type)[0]
        return ImagePart(image, piece.codes, piece.is_complete)


def merge_text(parts: Iterable[TextPart | ImagePart]) -> list[TextPart | ImagePart]:
    """The parts with pieces of text that follow one another as one."""
    merged: list[TextPart | ImagePart] = []
    for part in parts:
        if isinstance(part, TextPart) and merged and isinstance(merged[-1], TextPart):
            merged[-1] = TextPart(merged[-1].text + part.text)
        else:
            merged.append(part)
    return merged


LuminaMGPTChatPipeline.stream.__signature__ = stream_signature(LuminaMGPTChatPipeline)
