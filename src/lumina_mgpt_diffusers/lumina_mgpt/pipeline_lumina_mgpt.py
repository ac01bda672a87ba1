# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging, replace_example_docstring

from .calls import Codes, ImageCall, LuminaMGPTStreamOutput, call_arguments, stream_signature
from .pipeline_images import LuminaMGPTImagePipeline
from .pipeline_output import LuminaMGPTPipelineOutput
from .prompts import encode_conversation, unpad
from .validation import check_flag, check_integer, check_latents, check_prompts, check_size


logger = logging.get_logger(__name__)

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from lumina_mgpt_diffusers import LuminaMGPTPipeline

        >>> pipe = LuminaMGPTPipeline.from_pretrained("path/to/Lumina-mGPT-7B-768", dtype=torch.bfloat16)
        >>> pipe.to("cuda")
        >>> generator = torch.Generator().manual_seed(0)
        >>> image = pipe("a red fox in the snow", height=768, width=768, generator=generator).images[0]
        >>> image.save("fox.png")
        ```
"""


class LuminaMGPTPipeline(LuminaMGPTImagePipeline):
    r"""
    Pipeline for text-to-image generation with Lumina-mGPT (https://huggingface.co/papers/2408.02657).

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods the
    library implements for all the pipelines (such as downloading or saving, running on a particular device, etc.)

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Tokenizer of the Chameleon vocabulary, which names the image tokens.
        transformer ([`LuminaMGPTTransformer`]):
            Autoregressive transformer over text and image tokens.
        vqvae ([`VQModel`]):
            Decodes VQ codes to images.
        scheduler ([`LuminaMGPTScheduler`]):
            The sampler and its settings.
    """

    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        height: int | list[int] | None = None,
        width: int | list[int] | None = None,
        max_sequence_length: int = 1024,
        device: torch.device | None = None,
    ) -> tuple[
        torch.LongTensor,
        torch.LongTensor,
        torch.LongTensor | None,
        torch.LongTensor | None,
        int | list[int],
        int | list[int],
    ]:
        r"""
        Encode prompts as the text-to-image conversations the model was trained on. Needs the tokenizer only.

        Control tokens in a prompt, such as `<eoss>`, are encoded as the characters they are made of.

        Args:
            prompt (`str` or `list[str]`): The prompt or prompts.
            negative_prompt (`str` or `list[str]`, *optional*): What to guide away from.
            height (`int` or `list[int]`, *optional*), width (`int` or `list[int]`, *optional*):
                Size of the image in pixels, which is part of the conversation; the scheduler's base size by default.
                A list holds one for each prompt.
            max_sequence_length (`int`, defaults to 1024): Longest conversation in tokens; longer prompts are cut.
            device (`torch.device`, *optional*): Where the ids are wanted.

        Returns:
            `tuple`: Token ids and attention masks, `torch.LongTensor` of shape `(batch_size, length)`, padded on the
            right, of the prompts, then of the negative prompts (None without), and the height and the width, which
            have to be passed on with the ids.
        """
        height, width = self.default_size(height, width)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sizes = self._sizes(height, width, len(prompts))
        prompt_token_ids, prompt_attention_mask = self._encode(prompts, sizes, max_sequence_length, device)
        negative_prompt_token_ids, negative_prompt_attention_mask = None, None
        if negative_prompt is not None:
            negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else negative_prompt
            negative_prompt_token_ids, negative_prompt_attention_mask = self._encode(
                negatives, sizes, max_sequence_length, device
            )
        return (
            prompt_token_ids,
            prompt_attention_mask,
            negative_prompt_token_ids,
            negative_prompt_attention_mask,
            height,
            width,
        )

    def _encode(
        self,
        prompts: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        max_sequence_length: int,
        device: torch.device | None,
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        conversations = []
        for prompt, (height, width) in zip(prompts, sizes):
            content = self.family.text_to_image_prompt(prompt, height, width)
            ids = encode_conversation(self.tokenizer, [{"role": "user", "content": content}], family=self.family)
            if len(ids) > max_sequence_length:
                kept, separator = ids[: max_sequence_length - 1], ids[-1]
                lost = self.tokenizer.decode(ids[max_sequence_length - 1 : -1])
                logger.warning(
                    f"The prompt has {len(ids)} tokens, more than `max_sequence_length` {max_sequence_length}. This"
                    f" part of it was cut: {lost!r}"
                )
                ids = [*kept, separator]
            conversations.append(ids)
        length = max(map(len, conversations))
        device = device or torch.device("cpu")
        token_ids = torch.full((len(prompts), length), self.tokenizer.pad_token_id, device=device)
        attention_mask = torch.zeros_like(token_ids)
        for row, ids in enumerate(conversations):
            token_ids[row, : len(ids)] = torch.tensor(ids, device=device)
            attention_mask[row, : len(ids)] = 1
        return token_ids, attention_mask

    def default_size(
        self, height: int | list[int] | None, width: int | list[int] | None, latents: object = None
    ) -> tuple[int | list[int], int | list[int]]:
        """The size that a call without one has: that of the given codes, else the scheduler's base size."""
        if isinstance(latents, torch.Tensor) and latents.ndim == 3 and height is None and width is None:
            height, width = (side * self.vae_scale_factor for side in latents.shape[1:])
        if height is None or width is None:
            if self.scheduler is None:
                raise ValueError("`height` and `width` have to be given to a pipeline without a scheduler.")
            base_size = self.scheduler.config.resolution
            height, width = (base_size if side is None else side for side in (height, width))
        return height, width

    @staticmethod
    def _sizes(height: int | Sequence[int], width: int | Sequence[int], num_prompts: int) -> list[tuple[int, int]]:
        """`(height, width)` for each prompt."""
        sides = []
        for name, side in (("height", height), ("width", width)):
            side = list(side) if isinstance(side, (list, tuple)) else [side] * num_prompts
            if len(side) != num_prompts:
                raise ValueError(f"`{name}` is a list of {len(side)} but there are {num_prompts} prompts.")
            sides.append(side)
        return list(zip(*sides))

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | list[int] | None = None,
        width: int | list[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.LongTensor | list[torch.LongTensor] | None = None,
        prompt_token_ids: torch.LongTensor | None = None,
        prompt_attention_mask: torch.LongTensor | None = None,
        negative_prompt_token_ids: torch.LongTensor | None = None,
        negative_prompt_attention_mask: torch.LongTensor | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, torch.Tensor, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        max_sequence_length: int = 1024,
        top_p: float | None = None,
        min_p: float | None = None,
        num_draft_tokens: int | str | None = None,
        draft_init: str | None = None,
        return_log_probs: bool = False,
    ) -> LuminaMGPTPipelineOutput | tuple:
        r"""
        Generate images from text.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                The prompt or prompts. Not needed with `prompt_token_ids`.
            negative_prompt (`str` or `list[str]`, *optional*):
                What to guide away from. By default the unconditional branch sees the image alone, as in training,
                which is another thing than the prompt `""`. Ignored where guidance is off.
            height (`int` or `list[int]`, *optional*), width (`int` or `list[int]`, *optional*):
                Size of the images in pixels, multiples of 32; a list holds one for each prompt. By default that of
                `latents`, else the scheduler's `resolution`. The size is forced; sizes the model was not trained on
                give a warning.
            num_inference_steps (`int`, *optional*):
                Accepted so that scripts for other pipelines run. The number of sampled codes follows from the size.
            guidance_scale (`float`, *optional*):
                Scale s of classifier-free guidance, `unconditional + s * (conditional - unconditional)`; values of 1
                and less turn it off. By default the scheduler's, as for the other sampler settings.
            num_images_per_prompt (`int`, defaults to 1):
                Number of images to generate for each prompt.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One generator, from which each image in turn draws the key of its noise, or one for each image. A
                generator on the CPU gives the same noise whatever the device of the model. Without one, images are
                random; the global random state is neither used nor changed.
            latents (`torch.LongTensor` of shape `(num_images, height / stride, width / stride)`, *optional*):
                VQ codes to keep, -1 where a code is to be sampled: completes an image, for instance one that was
                returned by `output_type="latent"`. Of images of different sizes a list.
            prompt_token_ids (`torch.LongTensor` of shape `(num_prompts, length)`, *optional*):
                Encoded prompts instead of `prompt`, see [`encode_prompt`].
            prompt_attention_mask (`torch.LongTensor` of shape `(num_prompts, length)`, *optional*):
                1 where `prompt_token_ids` holds a token, 0 where it is padded. By default all are tokens.
            negative_prompt_token_ids (`torch.LongTensor` of shape `(num_prompts, length)`, *optional*):
                Encoded negative prompts instead of `negative_prompt`.
            negative_prompt_attention_mask (`torch.LongTensor` of shape `(num_prompts, length)`, *optional*):
                The same for the negative prompts.
            temperature (`float`, *optional*):
                Divides the guided logits; 0 takes the most likely code.
            top_k (`int`, *optional*):
                Number of codes that may be drawn, 0 for all.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"`, or `"latent"` for the VQ codes.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`LuminaMGPTPipelineOutput`] or a tuple.
            callback_on_step_end (`Callable` or [`PipelineCallback`], *optional*):
                Called after every forward as `callback(pipe, step, timestep, kwargs)`, where `step` is the raster
                index of the last code that is final in every image. It may set `pipe._interrupt = True` to stop: codes
                not sampled yet then repeat those above them in the images, and are -1 in the latent output. It may
                change `pipe._guidance_scale`, and return changed `latents`: sampling goes on from the first change,
                keeps the codes that are set and samples where they are -1. How many codes lie between two calls
                depends on the drafts; a schedule that is exact with them is a rule of the scheduler, see
                [`LuminaMGPTScheduler`].
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`):
                The tensors that the callback gets in `kwargs`.
            max_sequence_length (`int`, defaults to 1024):
                Longest prompt in tokens, with the words around it; what is beyond is cut with a warning.
            top_p (`float`, *optional*):
                Only the most likely codes may be drawn whose probabilities just add up to this.
            min_p (`float`, *optional*):
                Only codes at least this times as likely as the most likely one may be drawn.
            num_draft_tokens (`int` or `"auto"`, *optional*):
                Number of tokens that a forward evaluates ahead. It decides the speed, not the images.
            draft_init (`str`, *optional*):
                How codes are first guessed.
            return_log_probs (`bool`, defaults to `False`):
                Whether the output has the log-probabilities with which the codes were sampled.

        Examples:

        Returns:
            [`LuminaMGPTPipelineOutput`] or `tuple`: The images, or a tuple whose first element they are.

        Raises:
            `ValueError`: If an argument is wrong, before any model runs.
        """
        return_dict = check_flag("return_dict", return_dict)
        # 1. Check the arguments and encode the prompts
        call = self._prepare(every=None, **call_arguments(locals()))

        # 2. Sample the codes
        (result,) = self.sample(call)

        # 3. Decode the images
        output = self.finish(call, result.codes, result.log_probs)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (output.images, output.log_probs) if return_log_probs else (output.images,)
        return output

    def stream(self, *args, every: int | None = 1, **kwargs) -> Iterator[LuminaMGPTStreamOutput]:
        r"""
        Generate images from text, to be watched while they are sampled.

        The arguments are those of [`__call__`] but for `return_dict`, and the codes at the end are the same. They are
        checked at once; the sampling goes on as the iterator is asked for more.

        Args:
            every (`int`, *optional*, defaults to 1):
                Yield after so many rows of codes, each as high as a code; None for once at the end.

        Yields:
            [`LuminaMGPTStreamOutput`]: The codes so far, and on demand the images that they give.

        Examples:
            ```py
            >>> for step in pipe.stream("a red fox in the snow", every=8):
            ...     step.preview()[0].save(f"fox-{step.num_rows:02d}.png")
            ```
        """
        return self.sample(self.prepare(*args, every=every, **kwargs))

    def finish(
        self, call: ImageCall, codes: Codes, log_probs: torch.Tensor | list[torch.Tensor] | None = None
    ) -> LuminaMGPTPipelineOutput:
        """Make the output of a call of the codes that were sampled for it."""
        return LuminaMGPTPipelineOutput(images=self.decode_images(codes, call.output_type), log_probs=log_probs)

    def _ask(
        self,
        call: ImageCall,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        height: int | list[int] | None,
        width: int | list[int] | None,
        latents: torch.LongTensor | list[torch.LongTensor] | None,
        max_sequence_length: int,
        prompt_token_ids: torch.LongTensor | None = None,
        prompt_attention_mask: torch.LongTensor | None = None,
        negative_prompt_token_ids: torch.LongTensor | None = None,
        negative_prompt_attention_mask: torch.LongTensor | None = None,
    ) -> None:
        # 1. Check the arguments and fill in the defaults
        vocabulary, vocab_size = self.image_vocabulary, self.transformer.config.vocab_size
        num_prompts = check_prompts("prompt", prompt, prompt_token_ids, prompt_attention_mask, vocab_size)
        call.check_number(num_prompts)
        if negative_prompt is not None or negative_prompt_token_ids is not None:
            negative = (negative_prompt, negative_prompt_token_ids, negative_prompt_attention_mask)
            num_negatives = check_prompts("negative_prompt", *negative, vocab_size)
            if not isinstance(negative_prompt, str) and num_negatives != num_prompts:
                raise ValueError(
                    f"There are {num_prompts} prompts but {num_negatives} negative prompts in `negative_prompt`."
                )
        if self.tokenizer is None and not (prompt is None and negative_prompt is None):
            raise ValueError("This pipeline has no tokenizer: pass `prompt_token_ids` instead of `prompt`.")
        sizes = [
            check_size(*size, self.scheduler.config.resolution, vocabulary)
            for size in self._sizes(*self.default_size(height, width, latents), num_prompts)
        ]
        max_sequence_length = check_integer("max_sequence_length", max_sequence_length, least=2)
        image_sizes = [size for size in sizes for _ in range(call.repeats)]
        # Last of the checks, since a pipeline over this one encodes images here.
        codes = self._given_codes(latents, image_sizes, vocabulary.num_codes)
        call.num_timesteps = max(one.numel() for one in codes)
        for size in dict.fromkeys(sizes):
            self._warn_of_size(*size)

        # 2. Encode the prompts
        if prompt is not None:
            heights, widths = (list(sides) for sides in zip(*sizes))
            encoded = self.encode_prompt(prompt, negative_prompt, heights, widths, max_sequence_length)
            prompt_token_ids, prompt_attention_mask, *negatives = encoded[:4]
            if negative_prompt is not None:
                negative_prompt_token_ids, negative_prompt_attention_mask = negatives
        contexts = unpad(prompt_token_ids, prompt_attention_mask, call.repeats)
        unconditional_contexts = [self.unconditional_context for _ in contexts]
        if negative_prompt_token_ids is not None:
            unconditional_contexts = unpad(negative_prompt_token_ids, negative_prompt_attention_mask, call.repeats)
        self._warn_of_length(
            max(len(context) + vocabulary.num_tokens(*size) for context, size in zip(contexts, image_sizes))
        )
        for own in zip(contexts, unconditional_contexts, image_sizes, codes):
            call.add(*own)

    def _given_codes(
        self, latents: object, sizes: Sequence[tuple[int, int]], num_codes: int
    ) -> list[torch.LongTensor]:
        """The given codes of each image, -1 where there is none."""
        shapes = [tuple(side // self.vae_scale_factor for side in size) for size in sizes]
        if latents is None:
            return [torch.full(shape, -1, device="cpu") for shape in shapes]
        if isinstance(latents, (list, tuple)) and len(latents) == len(shapes):
            return [
                check_latents(one, shape, num_codes, f"latents[{index}]")
                for index, (one, shape) in enumerate(zip(latents, shapes))
            ]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"`latents` have to be a list of {len(shapes)} tensors of VQ codes for images of different sizes."
            )
        return list(check_latents(latents, (len(shapes), *shapes[0]), num_codes))


LuminaMGPTPipeline.stream.__signature__ = stream_signature(LuminaMGPTPipeline)
