# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The model card of a saved pipeline.

Its `library_name` is `diffusers`: the Hub counts the downloads of a repository by the `model_index.json` of that
library and offers it to that library's users, who need nothing but the import that the card shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .lumina_mgpt.unirep import nearest_size, trained_sizes


CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
license: other
license_name: chameleon-research-license
license_link: https://github.com/facebookresearch/chameleon/blob/main/LICENSE
tags:
- lumina-mgpt
- lumina-mgpt-diffusers
- autoregressive
- chameleon
---

# Lumina-mGPT, base size {resolution}

An autoregressive model of text and images ([Lumina-mGPT](https://huggingface.co/papers/2408.02657)) as a
[diffusers](https://huggingface.co/docs/diffusers) pipeline.

## Usage

```bash
pip install lumina-mgpt-diffusers
```

```py
import torch
from lumina_mgpt_diffusers import LuminaMGPTPipeline

model = "{model}"  # this folder, or the id of the repository that holds it
device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = LuminaMGPTPipeline.from_pretrained(model, dtype=torch.bfloat16).to(device)
generator = torch.Generator().manual_seed(0)
image = pipe("a red fox in the snow", height={resolution}, width={resolution}, generator=generator).images[0]
image.save("fox.png")
```

With that package installed but not imported, diffusers finds the classes through this repository:

```py
import torch
from diffusers import DiffusionPipeline

model = "{model}"
pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline=model, trust_remote_code=True, dtype=torch.bfloat16)
```

## Sampler settings

The defaults of `scheduler/scheduler_config.json`. Pass `guidance_scale`, `temperature` or `top_k` to a call, or change
the scheduler: `pipe.scheduler = LuminaMGPTScheduler.from_config(pipe.scheduler.config, top_k=500)`.

| setting | value |
|---|---|
{settings}

## Sizes

The model was trained on {num_sizes} sizes of about {resolution}x{resolution} pixels. Those nearest to common shapes:

| width : height | `height` | `width` |
|---|---|---|
{shapes}

All of them, `height x width`: {sizes}.

## Licence

The weights derive from [Chameleon](https://github.com/facebookresearch/chameleon) and are under the Chameleon Research
License: non-commercial research only, outputs included; redistribution under the same terms and with its notice.
"""

COMMON_SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16), (2, 1), (1, 2))


def model_card(scheduler_config: Mapping[str, Any], model: str = ".") -> str:
    """
    Text of the `README.md` of a pipeline.

    Args:
        scheduler_config (`Mapping[str, Any]`): Configuration of its [`LuminaMGPTScheduler`].
        model (`str`, defaults to `"."`): What the usage loads: the id of the repository or a folder.
    """
    resolution = scheduler_config["resolution"]
    settings = {name: value for name, value in sorted(scheduler_config.items()) if not name.startswith("_")}
    shapes = []
    for columns, rows in COMMON_SHAPES:
        height, width = nearest_size(rows, columns, resolution)
        shapes.append(f"| {columns} : {rows} | {height} | {width} |")
    sizes = trained_sizes(resolution)
    return CARD.format(
        model=model,
        resolution=resolution,
        settings="\n".join(f"| `{name}` | {value} |" for name, value in settings.items()),
        num_sizes=len(sizes),
        shapes="\n".join(shapes),
        sizes=", ".join(f"{height}x{width}" for height, width in sizes),
    )
