# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the model card of a trained pipeline or adapter says of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


SHOWN = (
    "steps",
    "samples_per_epoch",
    "resolution",
    "rank",
    "lora_alpha",
    "train_batch_size",
    "gradient_accumulation_steps",
    "packing",
    "mixed_precision",
    "learning_rate",
    "lr_scheduler",
    "adam_beta1",
    "adam_beta2",
    "adam_weight_decay",
    "max_grad_norm",
    "z_loss_weight",
    "dropout",
    "context_dropout",
    "seed",
)

SECTION = """
## Training

Trained from `{base}` with `lumina_mgpt_diffusers.training`. All settings are in `training.json`.

| setting | value |
|---|---|
{settings}
"""

ADAPTER_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
base_model: {base}
tags:
- lora
- lumina-mgpt
- lumina-mgpt-diffusers
---

# LoRA adapter of Lumina-mGPT

```py
from lumina_mgpt_diffusers import LuminaMGPTPipeline

pipe = LuminaMGPTPipeline.from_pretrained("{base}")
pipe.load_lora_weights(".")  # this folder, or the id of the repository that holds it
```
{section}"""


def training_section(record: Mapping[str, Any]) -> str:
    """
    The section of a model card.

    Args:
        record (`Mapping[str, Any]`): The flags of the run, its `steps` and its `samples_per_epoch`.
    """
    settings = "\n".join(f"| `{name}` | {record[name]} |" for name in SHOWN if record.get(name) is not None)
    return SECTION.format(base=record["pretrained_model_name_or_path"], settings=settings)


def adapter_card(record: Mapping[str, Any]) -> str:
    """
    The model card of an adapter.

    Args:
        record (`Mapping[str, Any]`): As for [`training_section`].
    """
    return ADAPTER_CARD.format(base=record["pretrained_model_name_or_path"], section=training_section(record))
