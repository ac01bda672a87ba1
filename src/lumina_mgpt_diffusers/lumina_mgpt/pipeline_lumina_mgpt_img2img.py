# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import replace_example_docstring

from .decoding import ImageDecoder
from .image_encoding import ImageInput, LoadedImage, encode_images, load_images
from .pipeline_base import OUTPUT_TYPES, LuminaMGPTBasePipeline
from .pipeline_output import LuminaMGPTImg2ImgPipelineOutput
from .prompts import Task, encode_conversation, find_task
from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .size_tags import SizeTags, choose_sizes
from .streaming import SamplingLoopMixin
from .unirep import nearest_size
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
        >>> from lumina_mgpt_diffusers import LuminaMGPTImg2ImgPipeline

        >>> pipe = LuminaMGPTImg2ImgPipeline.from_pretrained("path/to/Lumina-mGPT-Omni", dtype=torch.bfloat16)
        >>> pipe.to("cuda")
        >>> night = pipe("Make it night.", image="fox.png", generator=torch.Generator().manual_seed(0)).images[0]
        >>> depth = pipe(image="fox.png", task="depth").arrays[0]
        ```
"""


class LuminaMGPTImg2ImgPipeline(SamplingLoopMixin, LuminaMGPTBasePipeline):
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

    _callback_tensor_inputs = ["latents"]

    def check_inputs(
        self,
        prompts: Sequence[object],
        images: Sequence[Sequence[LoadedImage]],
        height: int | None,
        width: int | None,
        size: str | None,
        guidance_scale: float,
        temperature: float,
        top_k: int | None,
        num_images_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        crop_generator: torch.Generator | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str] | None,
    ) -> None:
        """Check the arguments of [`__call__`], defaults filled in. Raises a `ValueError` that names the wrong one."""
        if self.tokenizer is None:
            raise ValueError("This pipeline has no tokenizer, without which it cannot encode `prompt`.")
        wrong = [prompt for prompt in prompts if not (prompt is None or isinstance(prompt, str))]
        if wrong:
            raise ValueError(f"`prompt` has to be a string or a list of strings but holds {wrong[0]!r}.")
        if size not in (None, "free"):
            raise ValueError(f"`size` has to be None or 'free' but is {size!r}.")
        if size == "free" and (height is not None or width is not None):
            raise ValueError(
                f"`height` and `width` have to be None with `size='free'` but are {height!r} and {width!r}."
            )
        vocabulary = self.image_vocabulary
        for own in images:
            for image in own:
                if isinstance(image, torch.Tensor):
                    check_codes("image", image, vocabulary)
        for wanted in self._sizes(images, height, width):
            check_size(*wanted, self.scheduler.config.resolution, vocabulary.max_side)
        check_guidance_scale(guidance_scale)
        check_temperature(temperature)
        check_top_k(top_k)
        check_integer("num_images_per_prompt", num_images_per_prompt, least=1)
        check_generator(generator, len(images) * num_images_per_prompt)
        check_crop_generator(crop_generator)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` has to be one of {list(OUTPUT_TYPES)} but is {output_type!r}.")
        allowed = self._callback_tensor_inputs
        unknown = [name for name in callback_on_step_end_tensor_inputs or [] if name not in allowed]
        if unknown:
            raise ValueError(f"`callback_on_step_end_tensor_inputs` has to be in {allowed}, but found {unknown}")

    def _sizes(
        self, images: Sequence[Sequence[LoadedImage]], height: int | None, width: int | None
    ) -> list[tuple[int, int]]:
        """`(height, width)` of each output: as asked for, else that of the first input image once encoded."""
        sizes = []
        for first, *_ in images:
            if isinstance(first, torch.Tensor):
                encoded = tuple(side * self.vae_scale_factor for side in first.shape)
            else:
                encoded = nearest_size(first.height, first.width, self.scheduler.config.resolution)
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
        vocabulary, device = self.image_vocabulary, self._execution_device
        contexts = []
        for content, own in zip(contents, images):
            codes = encode_images(self.vqvae, own, self.scheduler.config.resolution, device, crop_generator)
            tokens = [vocabulary.to_tokens(one).tolist() for one in codes]
            contexts.append(encode_conversation(self.tokenizer, [{"role": "user", "content": content}], tokens))
        return contexts

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
                `"Colorize. <|image|>"` or `"{prompt} <|image|>"`.
            height (`int`, *optional*), width (`int`, *optional*):
                Size of the images in pixels, multiples of 32; by default that of the input image as it was encoded, of
                the first if there are several. The size is forced.
            size (`str`, *optional*):
                `"free"` lets the model choose the size, among grids of at most the trained area and aspect ratio.
            guidance_scale (`float`, *optional*):
                Scale s of classifier-free guidance, `unconditional + s * (conditional - unconditional)`, where the
                unconditional branch sees the new image alone; 1 turns it off. By default the task's, or else the
                scheduler's, as for the other sampler settings.
            num_images_per_prompt (`int`, defaults to 1):
                Number of images to generate for each prompt.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One generator, from which the images draw their noise in order, or one for each image. With
                `size="free"` the noise of the sizes is drawn first. Without one, images are random; the global random
                state is neither used nor changed.
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
                Called after every forward as in [`LuminaMGPTPipeline`]. Images of different sizes are sampled one size
                after the other, and it sees those of one size.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`):
                The tensors that the callback gets in `kwargs`.

        Examples:

        Returns:
            [`LuminaMGPTImg2ImgPipelineOutput`] or `tuple`: The images and, for the tasks that define it, what they
            mean as arrays.

        Raises:
            `ValueError`: If an argument is wrong, before any model runs.
        """
        # 1. Fill in the defaults and check the arguments
        task = find_task(task)
        config = self.scheduler.config
        guidance_scale = _first_given(guidance_scale, task.guidance_scale, config.guidance_scale)
        temperature = _first_given(temperature, task.temperature, config.temperature)
        top_k = _first_given(top_k, task.top_k, config.top_k or 0)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        prompts, images = pair_up(prompt, image)
        self.check_inputs(
            prompts,
            images,
            height,
            width,
            size,
            guidance_scale,
            temperature,
            top_k,
            num_images_per_prompt,
            generator,
            crop_generator,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self._guidance_scale = guidance_scale
        self._interrupt = False

        # 2. Encode the prompts and images
        contexts = self.encode_prompts(prompts, images, task, crop_generator)
        contexts = [context for context in contexts for _ in range(num_images_per_prompt)]
        if generator is None:
            generator = torch.Generator()
            generator.seed()  # from the system: the global random state stays as it is

        # 3. Decide the sizes
        if size == "free":
            sizes = choose_sizes(
                self.transformer,
                self.scheduler,
                SizeTags(self.image_vocabulary, config.resolution),
                contexts,
                generator if isinstance(generator, list) else [generator] * len(contexts),
                self._execution_device,
                temperature,
                top_k,
            )
        else:
            sizes = [one for one in self._sizes(images, height, width) for _ in range(num_images_per_prompt)]
            for one in dict.fromkeys(sizes):
                self._warn_of_size(*one)

        # 4. Sample the codes, those of one size together
        codes: list[torch.LongTensor | None] = [None] * len(contexts)
        generators = self._in_order(generator, sizes)
        for one in dict.fromkeys(sizes):
            rows = [row for row, other in enumerate(sizes) if other == one]
            sampled = self._sample_size(
                one,
                [contexts[row] for row in rows],
                [generators[row] for row in rows],
                temperature,
                top_k,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
            )
            for row, own in zip(rows, sampled):
                codes[row] = own

        # 5. Decode the images
        images, arrays = self._decode(codes, task, output_type)
        self.maybe_free_model_hooks()

        if not return_dict:
            return (images, arrays)
        return LuminaMGPTImg2ImgPipelineOutput(images=images, arrays=arrays)

    def _in_order(
        self, generator: torch.Generator | list[torch.Generator], sizes: Sequence[tuple[int, int]]
    ) -> list[torch.Generator]:
        """A generator for each image, such that images of different sizes draw in their order all the same."""
        if isinstance(generator, list):
            return generator
        if len(set(sizes)) == 1:
            return [generator] * len(sizes)
        generators = []
        for height, width in sizes:
            generators.append(torch.Generator(generator.device))
            generators[-1].set_state(generator.get_state())
            num_codes = (height // self.vae_scale_factor) * (width // self.vae_scale_factor)
            LuminaMGPTScheduler.draw_noise((num_codes, self.vqvae.config.num_vq_embeddings), generator)
        return generators

    def _sample_size(
        self,
        size: tuple[int, int],
        contexts: list[list[int]],
        generators: list[torch.Generator],
        temperature: float,
        top_k: int,
        callback: Callable | None,
        callback_tensor_inputs: list[str],
    ) -> torch.LongTensor:
        """Codes `(num_images, rows, columns)` of the images of one size."""
        rows, columns = (side // self.vae_scale_factor for side in size)
        device = self._execution_device
        self._num_timesteps = rows * columns
        self._warn_of_length(max(map(len, contexts)) + self.image_vocabulary.num_tokens(*size))
        self.scheduler.set_timesteps(self._num_timesteps, device=device)
        decoder = ImageDecoder(
            self.transformer,
            self.scheduler,
            self.image_vocabulary,
            contexts,
            [[] for _ in contexts] if self.do_classifier_free_guidance else None,
            torch.full((len(contexts), rows, columns), -1),
            generators,
            device=device,
            guidance_scale=self._guidance_scale,
            temperature=temperature,
            top_k=top_k,
            kept_cache=self._take_kept_cache(),
        )
        (result,) = self._sample_codes(decoder, callback, callback_tensor_inputs, "latent", every=None)
        return result.codes

    def _decode(
        self, codes: list[torch.LongTensor], task: Task, output_type: str
    ) -> tuple[list | np.ndarray | torch.Tensor, list[np.ndarray] | None]:
        """The images of the codes, and what they mean."""
        same_size = len({one.shape for one in codes}) == 1
        if output_type == "latent":
            return torch.stack(codes) if same_size else codes, None
        pixels = [self.decode_codes(one[None]) for one in codes]
        arrays = None
        if task.to_array is not None:
            pil = [self.image_processor.postprocess(one, output_type="pil")[0] for one in pixels]
            arrays = [task.to_array(np.asarray(one)) for one in pil]
        if same_size:
            return self.image_processor.postprocess(torch.cat(pixels), output_type=output_type), arrays
        return [self.image_processor.postprocess(one, output_type=output_type)[0] for one in pixels], arrays


def pair_up(prompt: object, image: object) -> tuple[list[str | None], list[list[LoadedImage]]]:
    """The prompts and, for each, its images."""
    if image is None:
        raise ValueError("`image` has to be given but is None.")
    if isinstance(image, (list, tuple)):
        images = [load_images(own, f"image[{index}]") for index, own in enumerate(image)]
    else:
        images = [[one] for one in load_images(image)]
    if not images or not all(images):
        raise ValueError("`image` has to hold at least one image for each prompt but holds an empty list.")
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt] * len(images)
    if len(images) == 1:
        images = images * len(prompts)
    if len(prompts) != len(images) or not prompts:
        raise ValueError(f"There are {len(prompts)} prompts in `prompt` but {len(images)} images in `image`.")
    return prompts, images


def _first_given(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
