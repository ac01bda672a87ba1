# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the pipelines of Lumina-mGPT have in common: components, loading and saving, codes to images."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, VQModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from transformers import ChameleonConfig, PreTrainedTokenizerFast

from ..repository import PortableSavingMixin
from .calls import CURRENT_CALL, Call, Codes
from .components import can_draw, check_base_size, check_fit, check_loaded_vqvae, stride_of, with_defaults
from .engine import Engine, is_compiled
from .families import ModelFamily
from .image_encoding import ImageInput, LoadedImage, encode_images, load_images
from .kv_cache import SlotCache
from .loading import OriginalCheckpointMixin, with_dtype
from .lora import LuminaMGPTLoraLoaderMixin
from .request import Request
from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .transformer_lumina_mgpt import LuminaMGPTTransformer
from .unirep import ImageVocabulary, fill_missing_codes, nearest_size, trained_sizes
from .vocabulary import family_of, read_vocabulary
from .window_tuner import WindowTuner


logger = logging.get_logger(__name__)

warn_once = functools.lru_cache(logger.warning)

KINDS = {"transformer": LuminaMGPTTransformer, "vqvae": VQModel, "scheduler": LuminaMGPTScheduler}

MOST_KEPT_TUNERS = 16

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class LuminaMGPTBasePipeline(
    OriginalCheckpointMixin, PortableSavingMixin, LuminaMGPTLoraLoaderMixin, DiffusionPipeline
):
    r"""
    Base class of the Lumina-mGPT pipelines. They have the same components, so that
    [`~diffusers.DiffusionPipeline.from_pipe`] makes any of them from any other.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Tokenizer of the Chameleon vocabulary, which names the image tokens.
        transformer ([`LuminaMGPTTransformer`]):
            Autoregressive transformer over text and image tokens.
        vqvae ([`VQModel`]):
            Turns images into VQ codes and back.
        scheduler ([`LuminaMGPTScheduler`]):
            The sampler and its settings.
    """

    model_cpu_offload_seq = "transformer->vqvae"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        transformer: LuminaMGPTTransformer,
        vqvae: VQModel,
        scheduler: LuminaMGPTScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, transformer=transformer, vqvae=vqvae, scheduler=scheduler)
        self.vae_scale_factor = self.family.stride if vqvae is None else stride_of(vqvae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._last_call = Call()
        self._kept_caches: dict[tuple, SlotCache] = {}
        self._kept_tuners: dict[tuple, WindowTuner] = {}

    def register_modules(self, **components: object) -> None:
        """Add components by name, None for one that is missing. Raises a `ValueError` if they do not fit."""
        for name, component in components.items():
            if component is not None:
                check_kind(name, component)
        super().register_modules(**components)
        if self.scheduler is not None and self.transformer is not None:
            scheduler = with_defaults(self.scheduler, self.transformer.config, self.family)
            super().register_modules(scheduler=scheduler)
        if None not in (self.tokenizer, self.transformer, self.vqvae):
            resolution = None if self.scheduler is None else self.scheduler.config.resolution
            check_fit(self.tokenizer, self.transformer.config, self.vqvae, resolution)

    def register_to_config(self, **values: object) -> None:
        super().register_to_config(**values)
        if values.get("_name_or_path") and self.vqvae is not None:  # as diffusers says last, by every route of loading
            check_loaded_vqvae(self.vqvae)

    def check_components(self) -> None:
        """Raise a `ValueError` that names the component if one that every call needs is missing or of another kind."""
        for name, kind in KINDS.items():
            component = getattr(self, name)
            if component is None:
                raise ValueError(f"This pipeline has no `{name}`, a `{kind.__name__}`, without which it cannot run.")
            check_kind(name, component)
        check_base_size(self.scheduler.config.resolution, self.family)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> LuminaMGPTBasePipeline:
        r"""
        Make a pipeline of this class that shares the components of another.

        Args:
            pipeline ([`DiffusionPipeline`]): The other pipeline.
            kwargs: Components to use instead, and what [`~diffusers.DiffusionPipeline.from_pipe`] takes. Without
                `dtype` the components keep theirs.
        """
        components = {name: kwargs.get(name, component) for name, component in pipeline.components.items()}
        names = set(cls._get_signature_keys(cls)[0])
        if names != components.keys() or not kwargs.keys() <= names:
            return super().from_pipe(pipeline, **with_dtype(kwargs))
        # diffusers would cast what the pipelines share to float32.
        return cls(**components)

    # What callbacks know a call by. A call's own state is in its `Call`, so that calls side by side do not meet.

    @property
    def _call(self) -> Call:
        current = CURRENT_CALL.get()
        return current[1] if current is not None and current[0] is self else self._last_call

    @property
    def _guidance_scale(self) -> float:
        return self._call.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, value: float) -> None:
        self._call.guidance_scale = value

    @property
    def _interrupt(self) -> bool:
        return self._call.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        self._call.interrupt = value

    @property
    def guidance_scale(self) -> float:
        return self._call.guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._call.guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._call.num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._call.interrupt

    # The KV cache of compiled code on CUDA: recorded graphs read and write the very memory they were recorded with.

    kept_cache_device = "cuda"

    def lend(self, engine: Engine, requests: Sequence[Request]) -> None:
        """
        Give an engine what an earlier call left, alone until [`keep`]: its KV cache and, if it was of this kind, the
        tuner of its windows.
        """
        engine.cache = self._kept_caches.pop(engine.cache_kind, None)
        self._kept_caches.clear()  # one of another kind is of no use, and would lie beside that of the engine
        if engine.tuner is not None:
            engine.tuner = self._kept_tuners.pop(_kind_of(engine, requests), engine.tuner)

    def keep(self, engine: Engine, requests: Sequence[Request]) -> None:
        """Keep for calls to come what an engine that has ended leaves."""
        if engine.tuner is not None:
            self._kept_tuners[_kind_of(engine, requests)] = engine.tuner
            if len(self._kept_tuners) > MOST_KEPT_TUNERS:
                self._kept_tuners.pop(next(iter(self._kept_tuners)), None)
        if engine.device.type == self.kept_cache_device and is_compiled(self.transformer) and engine.cache is not None:
            self._kept_caches = {engine.cache_kind: engine.cache}

    def to(self, *args, **kwargs) -> LuminaMGPTBasePipeline:
        self._kept_caches.clear()
        return super().to(*args, **kwargs)

    @property
    def family(self) -> ModelFamily:
        """The family that the model is of, as the transformer's configuration or else the vocabulary tells."""
        return family_of(self.tokenizer, self._transformer_config)

    @property
    def can_draw(self) -> bool:
        """Whether the model can sample images: not the Chameleon that was released."""
        return can_draw(self.transformer, self.image_vocabulary)

    @property
    def unconditional_context(self) -> list[int]:
        """Token ids before an image in the unconditional branch of guidance without a negative prompt."""
        if not self.family.guides_from_first_token:
            return []
        names = self._transformer_config if self.tokenizer is None else self.tokenizer
        return [names.bos_token_id]

    @property
    def _transformer_config(self) -> ChameleonConfig | None:
        return None if self.transformer is None else self.transformer.config

    @property
    def image_vocabulary(self) -> ImageVocabulary:
        """Token ids of the image language, by name from the tokenizer or, without one, the transformer's config."""
        if self.vqvae is None:
            raise ValueError("This pipeline has no `vqvae`, a `VQModel`, which tells how many codes there are.")
        num_codes = self.vqvae.config.num_vq_embeddings
        return read_vocabulary(self.tokenizer, num_codes, self.vae_scale_factor, self._transformer_config)

    def _warn_of_size(self, height: int, width: int) -> None:
        base_size = self.scheduler.config.resolution
        grid_size = self.family.grid_size
        if (height, width) not in trained_sizes(base_size, grid_size):
            warn_once(
                f"The model of base size {base_size} was not trained on images of {height}x{width} (height x width)."
                " Nearest trained size: {}x{}.".format(*nearest_size(height, width, base_size, grid_size))
            )

    def _warn_of_length(self, num_tokens: int) -> None:
        trained = self.transformer.config.max_position_embeddings
        if num_tokens > trained:
            warn_once(
                f"The sequence is longer than the {trained} tokens (`max_position_embeddings`) that the model was"
                " trained on. It works on, but may lose the thread."
            )

    def decode_codes(self, codes: torch.LongTensor) -> torch.Tensor:
        """
        Decode VQ codes to images, one at a time to bound the memory.

        Args:
            codes (`torch.LongTensor` of shape `(batch_size, rows, columns)`): Codes; -1 repeats the code above.

        Returns:
            `torch.Tensor` of shape `(batch_size, 3, height, width)`: Images with values in about [-1, 1].
        """
        shape = (1, *codes.shape[1:], self.vqvae.config.vq_embed_dim)
        images = [
            self.vqvae.decode(one.reshape(-1), force_not_quantize=True, shape=shape).sample
            for one in fill_missing_codes(codes)
        ]
        return torch.cat(images)

    @torch.no_grad()
    def decode_images(
        self, codes: Codes, output_type: str = "pil"
    ) -> list[PIL.Image.Image] | list[np.ndarray] | np.ndarray | list[torch.Tensor] | torch.Tensor:
        """
        Decode VQ codes to images of an output type.

        Args:
            codes (`torch.LongTensor` of shape `(batch_size, rows, columns)`, or a list of `(rows, columns)`):
                Codes; -1 repeats the code above.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"`, or `"latent"` for the codes.

        Returns:
            A list of PIL images, an array or a tensor. Arrays and tensors of images of different sizes are a list.
        """
        if output_type == "latent":
            return codes
        if not isinstance(codes, list):
            return self.image_processor.postprocess(self.decode_codes(codes), output_type=output_type)
        return [
            self.image_processor.postprocess(self.decode_codes(one[None]), output_type=output_type)[0] for one in codes
        ]

    @torch.no_grad()
    def encode_image(
        self, image: ImageInput | list[ImageInput], generator: torch.Generator | None = None
    ) -> list[torch.LongTensor]:
        """
        Encode images to VQ codes, cropped to the trained size of the nearest aspect ratio.

        Args:
            image (`ImageInput` or a list of them): The images, see [`LuminaMGPTImg2ImgPipeline.__call__`].
            generator (`torch.Generator`, *optional*): Crops at random places, as in training, instead of the centre.

        Returns:
            `list[torch.LongTensor]`: Codes of shape `(height / stride, width / stride)`, on the CPU.
        """
        images = load_images(image)
        codes = self._encode_images_to_codes(images, generator)
        self.maybe_free_model_hooks()
        return codes

    def _encode_images_to_codes(
        self, images: list[LoadedImage], generator: torch.Generator | None
    ) -> list[torch.LongTensor]:
        resolution, device = self.scheduler.config.resolution, self._execution_device
        return encode_images(self.vqvae, images, resolution, device, generator, self.family.grid_size)


def start_generator(generator: torch.Generator | list[torch.Generator] | None, number: int) -> list[torch.Generator]:
    """One generator for each image, from the system where the caller gives none."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()  # the global random state stays as it is
    return generator if isinstance(generator, list) else [generator] * number


def check_kind(name: str, component: object) -> None:
    """Raise a `ValueError` that names a component if it is of another kind than the pipelines need."""
    kind = KINDS.get(name)
    # Models may be wrapped: compiled, adapted, distributed.
    parts = component.modules() if isinstance(component, torch.nn.Module) else [component]
    if kind is not None and not any(isinstance(part, kind) for part in parts):
        hint = ""
        if isinstance(component, SchedulerMixin):
            hint = " Codes are not denoised but sampled, so the schedulers of diffusion models do not apply."
        raise ValueError(f"`{name}` has to be a `{kind.__name__}` but is a `{type(component).__name__}`.{hint}")


def _kind_of(engine: Engine, requests: Sequence[Request]) -> tuple:
    """What calls have in common whose steps take about as long, and accept about as many codes."""
    first = requests[0]
    return (id(engine.transformer), *engine.cache_kind, *engine.tuner.windows, first.size, first.settings)
