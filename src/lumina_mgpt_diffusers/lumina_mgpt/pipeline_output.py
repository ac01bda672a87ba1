# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput

from .conversation import ImagePart, LuminaMGPTConversation, TextPart
from .tasks import IMAGE_PLACEHOLDER


@dataclass
class LuminaMGPTPipelineOutput(BaseOutput):
    """
    Output class for Lumina-mGPT image pipelines.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            The images: a list of PIL images, an array of shape `(num_images, height, width, 3)` or a tensor of shape
            `(num_images, 3, height, width)` with values in [0, 1], or with `output_type="latent"` the VQ codes,
            `torch.LongTensor` of shape `(num_images, height / stride, width / stride)`, -1 where an interrupted call
            had not sampled one yet. Arrays, tensors and codes of images of different sizes are a list.
        log_probs (`torch.Tensor` of the shape of the codes, *optional*):
            With `return_log_probs`, float32: log-probabilities with which the codes were sampled, guidance and
            restriction included; 0 for codes that were given and where nothing is random.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    log_probs: torch.Tensor | list[torch.Tensor] | None = None


@dataclass
class LuminaMGPTImg2ImgPipelineOutput(LuminaMGPTPipelineOutput):
    """
    Output class for Lumina-mGPT image-to-image pipelines.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            As in [`LuminaMGPTPipelineOutput`].
        log_probs (`torch.Tensor` or `list[torch.Tensor]`, *optional*):
            As in [`LuminaMGPTPipelineOutput`].
        arrays (`list[np.ndarray]`, *optional*):
            What the images mean, for the tasks that define it, see [`Task`].
    """

    arrays: list[np.ndarray] | None = None


@dataclass
class LuminaMGPTChatPipelineOutput(BaseOutput):
    """
    Output class for [`LuminaMGPTChatPipeline`]: one answer.

    Args:
        parts (`list[TextPart | ImagePart]`): The answer, text and images in their order.
        finish_reason (`str`):
            `"stop"` if the model ended its answer, `"length"` if it was cut off at `max_new_tokens`.
        token_ids (`list[int]`): The tokens of the answer, without the separator that ends it.
        conversation ([`LuminaMGPTConversation`]): To go on from this answer.
    """

    parts: list[TextPart | ImagePart]
    finish_reason: str
    token_ids: list[int]
    conversation: LuminaMGPTConversation

    @property
    def text(self) -> str:
        """The answer as text, with `<|image|>` where an image stands."""
        return "".join(part.text if isinstance(part, TextPart) else IMAGE_PLACEHOLDER for part in self.parts)

    @property
    def images(self) -> list[PIL.Image.Image | np.ndarray | torch.Tensor]:
        """The images of the answer, those included that were cut off after their first code."""
        images = [part.image for part in self.parts if isinstance(part, ImagePart)]
        return [image for image in images if image is not None]
