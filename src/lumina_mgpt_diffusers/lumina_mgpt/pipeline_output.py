# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


@dataclass
class LuminaMGPTPipelineOutput(BaseOutput):
    """
    Output class for Lumina-mGPT image pipelines.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            The images: a list of PIL images, an array of shape `(num_images, height, width, 3)` or a tensor of shape
            `(num_images, 3, height, width)` with values in [0, 1], or with `output_type="latent"` the VQ codes,
            `torch.LongTensor` of shape `(num_images, height / 16, width / 16)`, -1 where an interrupted call had not
            sampled one yet.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
