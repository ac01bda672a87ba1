# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import replace_example_docstring

from .calls import Codes, ImageCall, LuminaMGPTStreamOutput, call_arguments, stream_signature
from .image_encoding import ImageInput, LoadedImage, load_images
from .panels import encode_panels, find_given, lower_half, panels_size
from .pipeline_images import LuminaMGPTImagePipeline
from .pipeline_output import LuminaMGPTImg2ImgPipelineOutput
from .prompts import encode_conversation, find_task
from .tasks import PanelTask, Task
from .unirep import nearest_size
from .validation import check_choice, check_codes, check_crop_generator, check_flag, check_size, check_text, shown


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from lumina_mgpt_diffusers import LuminaMGPTImg2ImgPipeline

        >>> pipe = LuminaMGPTImg2ImgPipeline.from_pretrained("path/to/Lumina-mGPT-Omni", dtype=torch.bfloat16)
        >>> pipe.to("cuda")
        >>> night = pipe("Make it night.", image="fox.png", generator=torch.Generator().manual_seed(0)).images[0]
        >>> depth = pipe(image="fox.png", task="depth").arrays[0]
        ```
"""


class LuminaMGPTImg2ImgPipeline(LuminaMGPTImagePipeline):
    r"""
    Pipeline for images from images with Lumina-mGPT (https://huggingface.co/papers/2408.02657): editing, depth,
    normals, segmentation, pose, detection, and generation controlled by such an image.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods the
    library implements for all the pipelines (such as downloading or saving, running on a particular device, etc.)

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Tokenizer of the Chameleon vocabulary, which names the image tokens.
        transformer ([`LuminaMGPTTransformer`]):
            Autoregressive transformer over text and image tokens.
        vqvae ([`VQModel`]):
            Encodes the images that go in and decodes those that come out.
        scheduler ([`LuminaMGPTScheduler`]):
            The sampler and its settings.
    """

    def _sizes(
        self, images: Sequence[Sequence[LoadedImage]], height: int | None, width: int | None
    ) -> list[tuple[int, int]]:
        """`(height, width)` of each output: as asked for, else that of the first input image once encoded."""
        sizes = []
        for first, *_ in images:
            if isinstance(first, torch.Tensor):
                encoded = tuple(side * self.vae_scale_factor for side in first.shape)
            else:
                base_size, grid_size = self.scheduler.config.resolution, self.family.grid_size
                encoded = nearest_size(first.height, first.width, base_size, grid_size)
            sizes.append((encoded[0] if height is None else height, encoded[1] if width is None else width))
        return sizes

    def encode_prompts(
        self,
        prompts: Sequence[str | None],
        images: Sequence[Sequence[LoadedImage]],
        task: Task,
        crop_generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """
        Encode prompts with their images as the conversations the model was trained on.

        Args:
            prompts (`list[str | None]`): The prompts.
            images (`list[list[PIL.Image.Image | torch.LongTensor]]`): For each the images, from [`load_images`].
            task ([`Task`]): What is asked for.
            crop_generator (`torch.Generator`, *optional*): Decides random places of the crops.

        Returns:
            `list[list[int]]`: Token ids, each up to the separator before the answer.
        """
        contents = [task.content(prompt, len(own)) for prompt, own in zip(prompts, images)]
        return self._encode(contents, [self._encode_images(images, crop_generator)[id(own)] for own in images])

    def _encode_images(
        self, images: Sequence[Sequence[LoadedImage]], crop_generator: torch.Generator | None
    ) -> dict[int, list[list[int]]]:
        """Tokens of the images of each prompt, by the identity of their list: those of all prompts only once."""
        vocabulary = self.image_vocabulary
        tokens = {}
        for own in images:
            if id(own) not in tokens:
                codes = self._encode_images_to_codes(own, crop_generator)
                tokens[id(own)] = [vocabulary.to_tokens(one).tolist() for one in codes]
        return tokens

    def _encode(self, contents: Sequence[list[dict]], images: Sequence[list[list[int]]]) -> list[list[int]]:
        return [
            encode_conversation(self.tokenizer, [{"role": "user", "content": content}], own, self.family)
            for content, own in zip(contents, images)
        ]

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | list[ImageInput | list[ImageInput]] | None = None,
        task: str | Task = "edit",
        height: int | None = None,
        width: int | None = None,
        size: str | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        crop_generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, torch.Tensor, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        negative_prompt: str | list[str] | None = None,
        strength: float | None = None,
        num_inference_steps: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        num_draft_tokens: int | str | None = None,
        draft_init: str | None = None,
        return_log_probs: bool = False,
        result_only: bool = False,
    ) -> LuminaMGPTImg2ImgPipelineOutput | tuple:
        r"""
        Generate images from images.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                The instruction, the object to detect or the caption, for the tasks that take one. One for all images
                or one for each.
            image (`ImageInput` or a list of them):
                The image: a PIL image, a path, a URL, an array, a tensor or VQ codes. A list of images, or an array
                with a batch dimension, is a batch. A list in the list is several images for one prompt, which then has
                to mark each of them by `<|image|>`; beside a single image that mark is just text.
            task (`str` or [`Task`], defaults to `"edit"`):
                `"edit"`, `"depth"`, `"normal"`, `"segmentation"`, `"pose"`, `"detection"`, `"control"` (an image from
                such an image and a caption) or another name in [`TASKS`]; or a template such as
                `"Colorize. <|image|>"` or `"{prompt} <|image|>"`. Other families have tasks of their own: with
                Lumina-mGPT 2.0 `"depth"`, `"canny"`, `"hed"`, `"pose"` and `"subject"` make an image of such an image
                and a caption, and `"to_depth"`, `"to_canny"`, `"to_hed"` and `"to_pose"` the reverse. They are one
                image of two panels, of which the upper one is the image that is given, or without any sampled too.
            height (`int`, *optional*), width (`int`, *optional*):
                Size of the images in pixels, multiples of 32; by default that of the input image as it was encoded, of
                the first if there are several. The size is forced. With tasks of two panels it is that of the whole,
                both panels, and `height` a multiple of 64.
            size (`str`, *optional*):
                `"free"` lets the model choose the size, among grids of at most the trained area and aspect ratio.
            guidance_scale (`float`, *optional*):
                Scale s of classifier-free guidance, `unconditional + s * (conditional - unconditional)`, where the
                unconditional branch sees the new image alone; values of 1 and less turn it off. By default the task's,
                or else the scheduler's, as for the other sampler settings.
            num_images_per_prompt (`int`, defaults to 1):
                Number of images to generate for each prompt.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One generator, from which each image in turn draws the key of its noise, or one for each image. Without
                one, images are random; the global random state is neither used nor changed.
            temperature (`float`, *optional*):
                Divides the guided logits; 0 takes the most likely code.
            top_k (`int`, *optional*):
                Number of codes that may be drawn, 0 for all.
            crop_generator (`torch.Generator`, *optional*):
                Crops input images at random places, as in training. By default they are cropped at the centre.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"`, or `"latent"` for the VQ codes.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`LuminaMGPTImg2ImgPipelineOutput`] or a tuple.
            callback_on_step_end (`Callable` or [`PipelineCallback`], *optional*):
                Called after every forward as in [`LuminaMGPTPipeline`], with `size="free"` from when all sizes are
                chosen. The latents of images of different sizes are a list.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`):
                The tensors that the callback gets in `kwargs`.
            negative_prompt (`str` or `list[str]`, *optional*):
                What to guide away from: the prompt of the unconditional branch, which then sees the input image too.
            strength (`float`, *optional*), num_inference_steps (`int`, *optional*):
                Accepted so that scripts for other pipelines run. How much of the image changes is for the instruction
                to say, and the number of sampled codes follows from the size.
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
            result_only (`bool`, defaults to `False`):
                Whether the output of a task of two panels is its lower half alone, not the whole image.

        Examples:

        Returns:
            [`LuminaMGPTImg2ImgPipelineOutput`] or `tuple`: The images and, for the tasks that define it, what they
            mean as arrays.

        Raises:
            `ValueError`: If an argument is wrong, before any model runs.
        """
        return_dict = check_flag("return_dict", return_dict)
        # 1. Check the arguments and encode the prompts and images
        call = self._prepare(every=None, **call_arguments(locals()))

        # 2. Sample the codes
        (result,) = self.sample(call)

        # 3. Decode the images
        output = self.finish(call, result.codes, result.log_probs)
        self.maybe_free_model_hooks()
        return output if return_dict else (output.images, output.arrays)

    def stream(self, *args, every: int | None = 1, **kwargs) -> Iterator[LuminaMGPTStreamOutput]:
        r"""
        Generate images from images, to be watched while they are sampled.

        The arguments are those of [`__call__`] but for `return_dict`, and the codes at the end are the same. They are
        checked at once; the sampling goes on as the iterator is asked for more.

        Args:
            every (`int`, *optional*, defaults to 1):
                Yield after so many rows of codes, each as high as a code; None for once at the end.

        Yields:
            [`LuminaMGPTStreamOutput`]: The codes so far, and on demand the images that they give.
        """
        return self.sample(self.prepare(*args, every=every, **kwargs))

    def _prepare(
        self,
        *,
        task: str | Task,
        guidance_scale: float | None,
        temperature: float | None,
        top_k: int | None,
        **arguments: object,
    ) -> ImageCall:
        task = find_task(task, self.family)
        return super()._prepare(
            task=task,
            guidance_scale=_first_given(guidance_scale, task.guidance_scale),
            temperature=_first_given(temperature, task.temperature),
            top_k=_first_given(top_k, task.top_k),
            **arguments,
        )

    def _ask(
        self,
        call: ImageCall,
        prompt: str | list[str] | None,
        image: object,
        task: Task,
        height: int | None,
        width: int | None,
        size: str | None,
        crop_generator: torch.Generator | None,
        negative_prompt: str | list[str] | None,
        result_only: bool,
    ) -> None:
        # 1. Check the arguments and fill in the defaults
        if self.tokenizer is None:
            raise ValueError("This pipeline has no tokenizer, without which it cannot encode `prompt`.")
        is_panels = isinstance(task, PanelTask)
        prompts, images = pair_up(prompt, image, needs_image=not is_panels)
        call.check_number(len(prompts))
        negatives = check_negatives(prompts, negative_prompt)
        check_choice("size", size, (None,) if is_panels else (None, "free"))
        result_only = check_flag("result_only", result_only)
        call.inputs = task, result_only
        check_crop_generator(crop_generator)
        if is_panels:
            self._ask_for_panels(call, prompts, negatives, images, task, height, width, crop_generator)
            return
        if result_only:
            raise ValueError(f"`result_only` has to be False for the task {task.template!r}, which has no panels.")
        contents = [task.content(text, len(own)) for text, own in zip(prompts, images)]
        negative_contents = [task.content(text, len(own)) for text, own in zip(negatives or [], images)]
        if size == "free" and (height is not None or width is not None):
            raise ValueError(
                f"`height` and `width` have to be None with `size='free'` but are {height!r} and {width!r}."
            )
        vocabulary = self.image_vocabulary
        for own in images:
            for one in own:
                if isinstance(one, torch.Tensor):
                    check_codes("image", one, vocabulary)
        sizes = [
            check_size(*wanted, self.scheduler.config.resolution, vocabulary)
            for wanted in self._sizes(images, height, width)
        ]
        if size is None:
            call.num_timesteps = max(height * width // self.vae_scale_factor**2 for height, width in sizes)
            for one in dict.fromkeys(sizes):
                self._warn_of_size(*one)

        # 2. Encode the prompts and images
        tokens = self._encode_images(images, crop_generator)
        tokens = [tokens[id(own)] for own in images]
        contexts = self._encode(contents, tokens)
        unconditional_contexts = self._encode(negative_contents, tokens) or [
            self.unconditional_context for _ in contexts
        ]
        self._warn_of_length(
            max(len(context) + vocabulary.num_tokens(*wanted) for context, wanted in zip(contexts, sizes))
        )
        for context, unconditional_context, wanted in zip(contexts, unconditional_contexts, sizes):
            for _ in range(call.repeats):
                call.add(context, unconditional_context, wanted if size is None else None)

    def _ask_for_panels(
        self,
        call: ImageCall,
        prompts: Sequence[str | None],
        negatives: Sequence[str | None] | None,
        images: Sequence[Sequence[LoadedImage]],
        task: PanelTask,
        height: int | None,
        width: int | None,
        crop_generator: torch.Generator | None,
    ) -> None:
        base_size, vocabulary = self.scheduler.config.resolution, self.image_vocabulary
        given = [find_given(own, vocabulary) for own in images]
        sizes = [panels_size(one, height, width, base_size, vocabulary) for one in given]
        call.num_timesteps = max(height * width // self.vae_scale_factor**2 for height, width in sizes)
        for height, width in dict.fromkeys(sizes):
            self._warn_of_size(height // 2, width)

        def encode(texts: Sequence[str | None]) -> list[list[int]]:
            contents = [task.panel_content(text, *size) for text, size in zip(texts, sizes)]
            return self._encode(contents, [[] for _ in contents])

        contexts = encode(prompts)
        unconditional_contexts = (
            encode(negatives) if negatives is not None else [self.unconditional_context for _ in contexts]
        )
        self._warn_of_length(
            max(len(context) + vocabulary.num_tokens(*size) for context, size in zip(contexts, sizes))
        )
        encoded = {}
        for one, size, context, unconditional_context in zip(given, sizes, contexts, unconditional_contexts):
            # One image for many prompts is encoded once.
            if (id(one), size) not in encoded:
                encoded[id(one), size] = encode_panels(self.vqvae, one, size, self._execution_device, crop_generator)
            for _ in range(call.repeats):
                call.add(context, unconditional_context, size, encoded[id(one), size])

    @torch.no_grad()
    def finish(
        self, call: ImageCall, codes: Codes, log_probs: torch.Tensor | list[torch.Tensor] | None = None
    ) -> LuminaMGPTImg2ImgPipelineOutput:
        """Make the output of a call of the codes that were sampled for it: images and what they mean."""
        (task, result_only), output_type = call.inputs, call.output_type
        if result_only and log_probs is not None:
            log_probs = lower_half(log_probs)
        if output_type == "latent":
            return LuminaMGPTImg2ImgPipelineOutput(lower_half(codes) if result_only else codes, log_probs=log_probs)
        if task.to_array is None and not result_only:
            return LuminaMGPTImg2ImgPipelineOutput(self.decode_images(codes, output_type), log_probs=log_probs)
        pixels = [self.decode_codes(one[None]) for one in codes]
        results = [lower_half(one) for one in pixels] if isinstance(task, PanelTask) else pixels
        arrays = None
        if task.to_array is not None:
            pil = [self.image_processor.postprocess(one, output_type="pil")[0] for one in results]
            arrays = [task.to_array(np.asarray(one)) for one in pil]
        pixels = results if result_only else pixels
        if isinstance(codes, list):
            images = [self.image_processor.postprocess(one, output_type=output_type)[0] for one in pixels]
        else:
            images = self.image_processor.postprocess(torch.cat(pixels), output_type=output_type)
        return LuminaMGPTImg2ImgPipelineOutput(images, log_probs=log_probs, arrays=arrays)


def check_negatives(prompts: Sequence[object], negative_prompt: object) -> list[str | None] | None:
    """One negative prompt for each prompt, if there is any."""
    negatives = None
    if negative_prompt is not None:
        is_list = isinstance(negative_prompt, (list, tuple))
        negatives = list(negative_prompt) if is_list else [negative_prompt] * len(prompts)
        if len(negatives) != len(prompts):
            raise ValueError(
                f"There are {len(prompts)} prompts but {len(negatives)} negative prompts in `negative_prompt`."
            )
    for name, texts in (("prompt", prompts), ("negative_prompt", negatives or [])):
        for text in texts:
            if not (text is None or isinstance(text, str)):
                raise ValueError(f"`{name}` has to be a string or a list of strings but holds {shown(text)}.")
            check_text(name, text or "")
    return negatives


def pair_up(
    prompt: object, image: object, needs_image: bool = True
) -> tuple[list[str | None], list[list[LoadedImage]]]:
    """The prompts and, for each, its images."""
    if image is None and needs_image:
        raise ValueError("`image` has to be given but is None.")
    if image is None:
        prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        return prompts, [[] for _ in prompts]
    if isinstance(image, (list, tuple)):
        images = [load_images(own, f"image[{index}]") for index, own in enumerate(image)]
    else:
        images = [[one] for one in load_images(image)]
    if not images or not all(images):
        raise ValueError("`image` has to hold at least one image for each prompt but holds an empty list.")
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt] * len(images)
    if len(images) == 1:
        images = images * len(prompts)  # the same list, whose images are encoded once
    if len(prompts) != len(images) or not prompts:
        raise ValueError(f"There are {len(prompts)} prompts in `prompt` but {len(images)} images in `image`.")
    return prompts, images


def _first_given(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


LuminaMGPTImg2ImgPipeline.stream.__signature__ = stream_signature(LuminaMGPTImg2ImgPipeline)
