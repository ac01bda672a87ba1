# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import replace_example_docstring

from .calls import Codes, ImageCall, LuminaMGPTStreamOutput, call_arguments, stack_same, stream_signature
from .image_encoding import (
    ImageInput,
    LoadedImage,
    encode_pixels,
    kept_box,
    load_images,
    resize_and_crop,
    to_resizable,
    to_rgb,
)
from .pipeline_lumina_mgpt import LuminaMGPTPipeline
from .pipeline_output import LuminaMGPTPipelineOutput
from .unirep import nearest_size
from .validation import check_codes, check_flag


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from lumina_mgpt_diffusers import LuminaMGPTInpaintPipeline

        >>> pipe = LuminaMGPTInpaintPipeline.from_pretrained("path/to/Lumina-mGPT-7B-768", dtype=torch.bfloat16)
        >>> pipe.to("cuda")
        >>> generator = torch.Generator().manual_seed(0)
        >>> image = pipe("a red fox in the snow", "snow.png", "mask.png", generator=generator).images[0]
        ```
"""


class LuminaMGPTInpaintPipeline(LuminaMGPTPipeline):
    r"""
    Pipeline for inpainting with Lumina-mGPT (https://huggingface.co/papers/2408.02657): text to image where a mask is,
    the codes of an image elsewhere.

    Codes are sampled in raster order. What is above the hole, and to its left, is seen; what is below it is not, so
    that the lower edge may not fit.

    This model inherits from [`LuminaMGPTPipeline`]. Check the superclass documentation for what it can do beside.

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

    @functools.cached_property
    def mask_processor(self) -> VaeImageProcessor:
        """What inpainting scripts prepare masks with, for instance by its `blur`."""
        return VaeImageProcessor(
            self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | list[ImageInput] | None = None,
        mask_image: ImageInput | list[ImageInput] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | list[int] | None = None,
        width: int | list[int] | None = None,
        strength: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        overlay: bool = False,
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
        Sample images anew where a mask is.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                What the whole image shows. One for all images or one for each.
            image (`ImageInput` or a list of them):
                The image: a PIL image, a path, a URL, an array, a tensor or VQ codes. It is cropped at the centre to
                the size of the output. A list is a batch.
            mask_image (`ImageInput` or a list of them):
                White where the image is to be sampled anew, black where it stays; the limit is half-way, as in
                diffusers. A mask of another size is stretched over the image. All codes are sampled whose cell it
                touches. One for all images or one for each.
            negative_prompt (`str` or `list[str]`, *optional*):
                What to guide away from, see [`LuminaMGPTPipeline.__call__`].
            height (`int` or `list[int]`, *optional*), width (`int` or `list[int]`, *optional*):
                Size of the images in pixels, multiples of 32; by default the trained size of the aspect ratio nearest
                to that of the image.
            strength (`float`, *optional*), num_inference_steps (`int`, *optional*):
                Accepted so that scripts for other pipelines run. Codes are either kept or sampled anew.
            guidance_scale (`float`, *optional*):
                Scale s of classifier-free guidance, `unconditional + s * (conditional - unconditional)`; values of 1
                and less turn it off. By default the scheduler's, as for the other sampler settings.
            num_images_per_prompt (`int`, defaults to 1):
                Number of images to generate for each prompt.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One generator, from which each image in turn draws the key of its noise, or one for each image.
            overlay (`bool`, defaults to `False`):
                Whether the pixels outside the mask are those of the cropped input image instead of what the VQ model
                makes of their codes.
            temperature (`float`, *optional*):
                Divides the guided logits; 0 takes the most likely code.
            top_k (`int`, *optional*):
                Number of codes that may be drawn, 0 for all.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"`, or `"latent"` for the VQ codes.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`LuminaMGPTPipelineOutput`] or a tuple.
            callback_on_step_end (`Callable` or [`PipelineCallback`], *optional*):
                Called after every forward, see [`LuminaMGPTPipeline.__call__`].
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
        return_dict, overlay = check_flag("return_dict", return_dict), check_flag("overlay", overlay)
        if overlay and output_type == "latent":
            raise ValueError("`overlay` has to be False with `output_type='latent'`, which has no pixels.")
        # 1. Check the arguments and encode the prompts and images
        arguments = call_arguments(locals())
        del arguments["overlay"]
        call = self._prepare(every=None, **arguments)

        # 2. Sample the codes
        (result,) = self.sample(call)

        # 3. Decode the images
        output = self.finish(call, result.codes, result.log_probs, overlay)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (output.images, output.log_probs) if return_log_probs else (output.images,)
        return output

    def stream(self, *args, every: int | None = 1, **kwargs) -> Iterator[LuminaMGPTStreamOutput]:
        r"""
        Sample images anew where a mask is, to be watched meanwhile.

        The arguments are those of [`__call__`] but for `return_dict` and `overlay`, and the codes at the end are the
        same. They are checked at once, and the images encoded; the sampling goes on as the iterator is asked for more.

        Args:
            every (`int`, *optional*, defaults to 1):
                Yield after so many rows of codes, each as high as a code; None for once at the end.

        Yields:
            [`LuminaMGPTStreamOutput`]: The codes so far, and on demand the images that they give.
        """
        return super().stream(*args, every=every, **kwargs)

    def _ask(
        self,
        call: ImageCall,
        prompt: str | list[str] | None,
        image: object,
        mask_image: object,
        height: int | list[int] | None,
        width: int | list[int] | None,
        **arguments: object,
    ) -> None:
        prompts, images, masks = self._load_inputs(prompt, image, mask_image)
        call.inputs = images, masks
        heights, widths = zip(*map(self._nearest_size, images))
        super()._ask(
            call,
            prompt=prompts,
            height=list(heights) if height is None else height,
            width=list(widths) if width is None else width,
            latents=list(zip(images, masks)),
            **arguments,
        )

    @torch.no_grad()
    def finish(
        self,
        call: ImageCall,
        codes: Codes,
        log_probs: torch.Tensor | list[torch.Tensor] | None = None,
        overlay: bool = False,
    ) -> LuminaMGPTPipelineOutput:
        """Make the output of a call of the codes that were sampled for it."""
        if overlay:
            images = self._overlay(self.decode_images(codes, "pt"), *call.inputs, call.output_type)
            return LuminaMGPTPipelineOutput(images=images, log_probs=log_probs)
        return super().finish(call, codes, log_probs)

    def _load_inputs(
        self, prompt: object, image: object, mask_image: object
    ) -> tuple[list[str], list[LoadedImage], list[np.ndarray]]:
        """As many prompts, images and masks as there are images."""
        for name, value in (("image", image), ("mask_image", mask_image)):
            if value is None:
                raise ValueError(f"`{name}` has to be given but is None.")
        images, masks = load_images(image), load_masks(mask_image)
        prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt] * max(len(images), len(masks))
        for name, values in (("image", images), ("mask_image", masks)):
            if not prompts or not values or len(values) not in (1, len(prompts)):
                raise ValueError(f"There are {len(prompts)} prompts or images but {len(values)} in `{name}`.")
            values *= len(prompts) // len(values)
        for index, one in enumerate(images):
            if isinstance(one, torch.Tensor):
                check_codes(f"image[{index}]", one, self.image_vocabulary)
        return prompts, images, masks

    def _nearest_size(self, image: LoadedImage) -> tuple[int, int]:
        if isinstance(image, torch.Tensor):
            return tuple(side * self.vae_scale_factor for side in image.shape)
        return nearest_size(image.height, image.width, self.scheduler.config.resolution, self.family.grid_size)

    def _given_codes(
        self, latents: Sequence[tuple[LoadedImage, np.ndarray]], sizes: Sequence[tuple[int, int]], num_codes: int
    ) -> list[torch.LongTensor]:
        """The codes of each image, -1 where its mask touches."""
        repeats = len(sizes) // len(latents)
        sizes = sizes[::repeats]
        for (image, _), size in zip(latents, sizes):
            if isinstance(image, torch.Tensor) and self._nearest_size(image) != tuple(size):
                height, width = self._nearest_size(image)
                raise ValueError(
                    f"`height` and `width` have to be {height} and {width}, as `image` holds the VQ codes of an image"
                    f" of that size, but are {size[0]} and {size[1]}."
                )
        # One image for many prompts is encoded once.
        encoded, given = {}, []
        for (image, mask), size in zip(latents, sizes):
            if (id(image), size) not in encoded:
                encoded[id(image), size] = self._encode_image(image, *size)
            codes = encoded[id(image), size]
            is_hole = torch.from_numpy(touched_cells(mask, _size_of(image, size), size, self.vae_scale_factor))
            given += [codes.masked_fill(is_hole, -1)] * repeats
        return given

    def _encode_image(self, image: LoadedImage, height: int, width: int) -> torch.LongTensor:
        if isinstance(image, torch.Tensor):
            return image
        fitted = to_rgb(resize_and_crop(to_resizable(image), height, width))
        return encode_pixels(self.vqvae, fitted, self._execution_device)

    def _overlay(
        self,
        sampled: torch.Tensor | list[torch.Tensor],
        images: Sequence[LoadedImage],
        masks: Sequence[np.ndarray],
        output_type: str,
    ) -> list | np.ndarray | torch.Tensor:
        """Images with the pixels of the input outside of their masks."""
        repeats = len(sampled) // len(images)
        pasted = []
        for index, one in enumerate(sampled):
            image, size = images[index // repeats], tuple(one.shape[1:])
            if isinstance(image, torch.Tensor):
                pixels = self.image_processor.postprocess(self.decode_codes(image[None]), output_type="pt")[0]
            else:
                fitted = to_rgb(resize_and_crop(to_resizable(image), *size))
                pixels = torch.from_numpy(np.asarray(fitted).astype(np.float32) / 255).permute(2, 0, 1)
            is_hole = torch.from_numpy(touched_cells(masks[index // repeats], _size_of(image, size), size, 1))
            pasted.append(torch.where(is_hole.to(one.device), one, pixels.to(one)))
        if output_type == "pt":
            return stack_same(pasted)
        arrays = [self.image_processor.pt_to_numpy(one[None])[0] for one in pasted]
        if output_type == "np":
            return np.stack(arrays) if isinstance(stack_same(pasted), torch.Tensor) else arrays
        return [self.image_processor.numpy_to_pil(one)[0] for one in arrays]


def load_masks(masks: object) -> list[np.ndarray]:
    """
    Read masks of any kind that an image may be of, of truth values too.

    Args:
        masks (`ImageInput` or a list of them): One or several masks.

    Returns:
        `list[np.ndarray]`: Arrays of bool of shape `(height, width)`, True where an image is to be sampled anew.
    """
    several = masks if isinstance(masks, (list, tuple)) else [masks]
    several = [one.astype(np.uint8) * 255 if getattr(one, "dtype", None) == np.bool_ else one for one in several]
    several = [one.float() if getattr(one, "dtype", None) == torch.bool else one for one in several]
    loaded = load_images(several if isinstance(masks, (list, tuple)) else several[0], "mask_image")
    for mask in loaded:
        if isinstance(mask, torch.Tensor):
            raise ValueError("`mask_image` has to be an image, white where codes are to be sampled, but is VQ codes.")
    return [np.asarray(to_rgb(mask).convert("L")) >= 128 for mask in loaded]


def touched_cells(mask: np.ndarray, image_size: tuple[int, int], size: tuple[int, int], cell: int) -> np.ndarray:
    """
    Which cells of an output a mask touches.

    Args:
        mask (`np.ndarray` of shape `(rows, columns)`): The mask, which is stretched over the image.
        image_size (`tuple[int, int]`): `(width, height)` of the image, which is cropped to the output.
        size (`tuple[int, int]`): `(height, width)` of the output in pixels.
        cell (`int`): Side of a cell in pixels.

    Returns:
        `np.ndarray` of shape `(height / cell, width / cell)`: True where any part of a masked pixel comes to lie.
    """
    left, top, right, bottom = kept_box(image_size, *size)
    across, down = mask.shape[1] / image_size[0], mask.shape[0] / image_size[1]
    touched = mask
    sides = ((top * down, bottom * down), (left * across, right * across))
    for axis, (begin, end) in enumerate(sides):
        edges = np.linspace(begin, end, size[axis] // cell + 1)
        # A hair inside, so that rounding brings in no neighbour.
        first, stop = np.floor(edges[:-1] + 1e-6).astype(int), np.ceil(edges[1:] - 1e-6).astype(int)
        touched = np.stack([touched.take(range(a, b), axis).any(axis) for a, b in zip(first, stop)], axis)
    return touched


def _size_of(image: LoadedImage, size: tuple[int, int]) -> tuple[int, int]:
    """`(width, height)` of an image, codes being an image of the size of the output."""
    return (size[1], size[0]) if isinstance(image, torch.Tensor) else image.size


def _signature() -> inspect.Signature:
    signature = stream_signature(LuminaMGPTInpaintPipeline)
    return signature.replace(parameters=[one for one in signature.parameters.values() if one.name != "overlay"])


LuminaMGPTInpaintPipeline.stream.__signature__ = _signature()
