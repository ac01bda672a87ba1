# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging, replace_example_docstring

from .decoding import ImageDecoder
from .pipeline_base import OUTPUT_TYPES, LuminaMGPTBasePipeline, warn_once
from .pipeline_output import LuminaMGPTPipelineOutput
from .prompts import encode_conversation, text_to_image_prompt, unpad
from .streaming import LuminaMGPTStreamOutput, SamplingLoopMixin
from .validation import (
    check_generator,
    check_guidance_scale,
    check_integer,
    check_latents,
    check_prompts,
    check_size,
    check_temperature,
    check_top_k,
)


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


class LuminaMGPTPipeline(SamplingLoopMixin, LuminaMGPTBasePipeline):
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

    _callback_tensor_inputs = ["latents"]

    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        max_sequence_length: int = 1024,
        device: torch.device | None = None,
    ) -> tuple[
        torch.LongTensor, torch.LongTensor, torch.LongTensor | None, torch.LongTensor | None, int | None, int | None
    ]:
        r"""
        Encode prompts as the text-to-image conversations the model was trained on. Needs the tokenizer only.

        Control tokens in a prompt, such as `<eoss>`, are encoded as the characters they are made of.

        Args:
            prompt (`str` or `list[str]`): The prompt or prompts.
            negative_prompt (`str` or `list[str]`, *optional*): What to guide away from.
            height (`int`, *optional*), width (`int`, *optional*):
                Size of the image in pixels, which is part of the conversation; the scheduler's base size by default.
            max_sequence_length (`int`, defaults to 1024): Longest conversation in tokens; longer prompts are cut.
            device (`torch.device`, *optional*): Where the ids are wanted.

        Returns:
            `tuple`: Token ids and attention masks, `torch.LongTensor` of shape `(batch_size, length)`, padded on the
            right, of the prompts, then of the negative prompts (None without), and the height and the width, which
            have to be passed on with the ids.
        """
        height, width = self._default_size(height, width)
        prompt = [prompt] if isinstance(prompt, str) else prompt
        prompt_token_ids, prompt_attention_mask = self._encode(prompt, height, width, max_sequence_length, device)
        negative_prompt_token_ids, negative_prompt_attention_mask = None, None
        if negative_prompt is not None:
            negatives = [negative_prompt] * len(prompt) if isinstance(negative_prompt, str) else negative_prompt
            negative_prompt_token_ids, negative_prompt_attention_mask = self._encode(
                negatives, height, width, max_sequence_length, device
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
        prompts: list[str],
        height: int,
        width: int,
        max_sequence_length: int,
        device: torch.device | None,
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        conversations = []
        for prompt in prompts:
            content = text_to_image_prompt(prompt, height, width)
            ids = encode_conversation(self.tokenizer, [{"role": "user", "content": content}])
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
        token_ids = torch.full((len(prompts), length), self.tokenizer.pad_token_id, device=device)
        attention_mask = torch.zeros_like(token_ids)
        for row, ids in enumerate(conversations):
            token_ids[row, : len(ids)] = torch.tensor(ids, device=device)
            attention_mask[row, : len(ids)] = 1
        return token_ids, attention_mask

    def _default_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        if None in (height, width):
            if self.scheduler is None:
                raise ValueError("`height` and `width` have to be given to a pipeline without a scheduler.")
            base_size = self.scheduler.config.resolution
            height, width = height or base_size, width or base_size
        return height, width

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        height: int,
        width: int,
        num_inference_steps: int | None,
        guidance_scale: float,
        num_images_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.LongTensor | None,
        prompt_token_ids: torch.LongTensor | None,
        prompt_attention_mask: torch.LongTensor | None,
        negative_prompt_token_ids: torch.LongTensor | None,
        negative_prompt_attention_mask: torch.LongTensor | None,
        temperature: float,
        top_k: int | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str] | None,
        max_sequence_length: int,
    ) -> None:
        """Check the arguments of [`__call__`], defaults filled in. Raises a `ValueError` that names the wrong one."""
        num_prompts = check_prompts("prompt", prompt, prompt_token_ids, prompt_attention_mask)
        if negative_prompt is not None or negative_prompt_token_ids is not None:
            num_negatives = check_prompts(
                "negative_prompt", negative_prompt, negative_prompt_token_ids, negative_prompt_attention_mask
            )
            if not isinstance(negative_prompt, str) and num_negatives != num_prompts:
                raise ValueError(f"There are {num_prompts} prompts but {num_negatives} negative prompts.")
        if self.tokenizer is None and not (prompt is None and negative_prompt is None):
            raise ValueError("This pipeline has no tokenizer: pass `prompt_token_ids` instead of `prompt`.")

        check_size(height, width, self.scheduler.config.resolution, self.image_vocabulary.max_side)
        check_guidance_scale(guidance_scale)
        check_temperature(temperature)
        check_top_k(top_k)
        check_integer("num_images_per_prompt", num_images_per_prompt, least=1)
        check_integer("max_sequence_length", max_sequence_length, least=2)
        if num_inference_steps is not None:
            check_integer("num_inference_steps", num_inference_steps, least=1)

        batch_size = num_prompts * num_images_per_prompt
        check_generator(generator, batch_size)
        if latents is not None:
            shape = (batch_size, height // self.vae_scale_factor, width // self.vae_scale_factor)
            check_latents(latents, shape, self.vqvae.config.num_vq_embeddings)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` has to be one of {list(OUTPUT_TYPES)} but is {output_type!r}.")
        allowed = self._callback_tensor_inputs
        unknown = [name for name in callback_on_step_end_tensor_inputs or [] if name not in allowed]
        if unknown:
            raise ValueError(f"`callback_on_step_end_tensor_inputs` has to be in {allowed}, but found {unknown}")

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.LongTensor | None = None,
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
    ) -> LuminaMGPTPipelineOutput | tuple:
        r"""
        Generate images from text.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                The prompt or prompts. Not needed with `prompt_token_ids`.
            negative_prompt (`str` or `list[str]`, *optional*):
                What to guide away from. By default the unconditional branch sees the image alone, as in training.
                Ignored at a `guidance_scale` of 1.
            height (`int`, *optional*), width (`int`, *optional*):
                Size of the images in pixels, multiples of 32. By default that of `latents`, else the scheduler's
                `resolution`. The size is forced; sizes the model was not trained on give a warning.
            num_inference_steps (`int`, *optional*):
                Accepted so that scripts for other pipelines run. The number of sampled codes follows from the size.
            guidance_scale (`float`, *optional*):
                Scale s of classifier-free guidance, `unconditional + s * (conditional - unconditional)`; 1 turns it
                off. By default the scheduler's, as for the other sampler settings.
            num_images_per_prompt (`int`, defaults to 1):
                Number of images to generate for each prompt.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One generator, from which the images draw their noise in order, or one for each image. A generator on
                the CPU gives the same noise whatever the device of the model. Without one, images are random; the
                global random state is neither used nor changed.
            latents (`torch.LongTensor` of shape `(num_images, height / 16, width / 16)`, *optional*):
                VQ codes to keep, -1 where a code is to be sampled: completes an image, for instance one that was
                returned by `output_type="latent"`.
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
                change `pipe._guidance_scale`, and return changed `latents`: decoding goes on from the first change,
                keeps the codes that are set and samples where they are -1.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`):
                The tensors that the callback gets in `kwargs`.
            max_sequence_length (`int`, defaults to 1024):
                Longest prompt in tokens, with the words around it; what is beyond is cut with a warning.

        Examples:

        Returns:
            [`LuminaMGPTPipelineOutput`] or `tuple`: The images, or a tuple whose first element they are.

        Raises:
            `ValueError`: If an argument is wrong, before any model runs.
        """
        # 1. Sample the codes
        steps = self.stream(
            prompt=prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            prompt_token_ids=prompt_token_ids,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_token_ids=negative_prompt_token_ids,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            temperature=temperature,
            top_k=top_k,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            max_sequence_length=max_sequence_length,
            every=None,
        )
        (result,) = steps

        # 2. Decode the images
        images = result.codes if output_type == "latent" else result.preview()
        self.maybe_free_model_hooks()

        if not return_dict:
            return (images,)
        return LuminaMGPTPipelineOutput(images=images)

    @torch.no_grad()
    def stream(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.LongTensor | None = None,
        prompt_token_ids: torch.LongTensor | None = None,
        prompt_attention_mask: torch.LongTensor | None = None,
        negative_prompt_token_ids: torch.LongTensor | None = None,
        negative_prompt_attention_mask: torch.LongTensor | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[[DiffusionPipeline, int, torch.Tensor, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        max_sequence_length: int = 1024,
        every: int | None = 1,
    ) -> Iterator[LuminaMGPTStreamOutput]:
        r"""
        Generate images from text, to be watched while they are sampled.

        The arguments are those of [`__call__`], and the codes at the end are the same. They are checked at once; the
        sampling goes on as the iterator is asked for more.

        Args:
            every (`int`, *optional*, defaults to 1):
                Yield after so many rows of codes, each of them 16 pixels; None for once at the end.

        Yields:
            [`LuminaMGPTStreamOutput`]: The codes so far, and on demand the images that they give.

        Examples:
            ```py
            >>> for step in pipe.stream("a red fox in the snow", every=8):
            ...     step.preview()[0].save(f"fox-{step.num_rows:02d}.png")
            ```
        """
        # 1. Fill in the defaults and check the arguments
        config = self.scheduler.config
        if isinstance(latents, torch.Tensor) and latents.ndim == 3 and height is None and width is None:
            height, width = (side * self.vae_scale_factor for side in latents.shape[1:])
        height, width = self._default_size(height, width)
        guidance_scale = config.guidance_scale if guidance_scale is None else guidance_scale
        temperature = config.temperature if temperature is None else temperature
        top_k = config.top_k if top_k is None else top_k
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self.check_inputs(
            prompt,
            negative_prompt,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            num_images_per_prompt,
            generator,
            latents,
            prompt_token_ids,
            prompt_attention_mask,
            negative_prompt_token_ids,
            negative_prompt_attention_mask,
            temperature,
            top_k,
            output_type,
            callback_on_step_end_tensor_inputs,
            max_sequence_length,
        )
        if every is not None:
            check_integer("every", every, least=1)
        self._guidance_scale = guidance_scale
        self._interrupt = False
        rows, columns = height // self.vae_scale_factor, width // self.vae_scale_factor
        self._num_timesteps = rows * columns
        self._warn_of_size(height, width)
        if num_inference_steps not in (None, self._num_timesteps):
            warn_once(
                "`num_inference_steps` does not apply to Lumina-mGPT: it samples one code for every 16x16 pixels, so"
                " that the number of steps follows from the size. The value is ignored."
            )

        # 2. Encode the prompts
        if prompt is not None:
            encoded = self.encode_prompt(prompt, negative_prompt, height, width, max_sequence_length)
            prompt_token_ids, prompt_attention_mask, *negatives = encoded[:4]
            if negative_prompt is not None:
                negative_prompt_token_ids, negative_prompt_attention_mask = negatives
        contexts = unpad(prompt_token_ids, prompt_attention_mask, num_images_per_prompt)
        unconditional_contexts = None
        if self.do_classifier_free_guidance:
            unconditional_contexts = [[] for _ in contexts]
            if negative_prompt_token_ids is not None:
                unconditional_contexts = unpad(
                    negative_prompt_token_ids, negative_prompt_attention_mask, num_images_per_prompt
                )

        # 3. Prepare the codes and the sampler
        if latents is None:
            latents = torch.full((len(contexts), rows, columns), -1)
        if generator is None:
            generator = torch.Generator()
            generator.seed()  # from the system: the global random state stays as it is
        generators = generator if isinstance(generator, list) else [generator] * len(contexts)
        device = self._execution_device
        self.scheduler.set_timesteps(self._num_timesteps, device=device)

        # 4. Sample the codes
        decoder = ImageDecoder(
            self.transformer,
            self.scheduler,
            self.image_vocabulary,
            contexts,
            unconditional_contexts,
            latents,
            generators,
            device=device,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            kept_cache=self._take_kept_cache(),
        )
        return self._sample_codes(
            decoder, callback_on_step_end, callback_on_step_end_tensor_inputs, output_type, every
        )
