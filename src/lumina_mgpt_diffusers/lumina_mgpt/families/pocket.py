# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The pocket model: a small Lumina-mGPT that `examples/pocket` trains on a world of toys, with its own VQ model."""

from dataclasses import replace

from .lumina_mgpt import LUMINA_MGPT


LUMINA_MGPT_POCKET = replace(
    LUMINA_MGPT,
    name="pocket",
    title="The pocket model",
    multiview=None,
    # What there is to see has one answer: the most likely codes are the best.
    tasks={
        name: replace(task, guidance_scale=None if name == "edit" else 1.0, temperature=0.0)
        for name, task in LUMINA_MGPT.tasks.items()
        if name != "pose"
    },
    sampler={"guidance_scale": 2.5, "temperature": 0.6, "top_k": 0},
    base_size=128,
    released_names={},
    num_codes=1024,
    vq_parameters=1_596_979,
    vq_values_per_pixel=97,
    tokenizer_repository=None,
    card={"license": "apache-2.0"},
    description=(
        "A small [Lumina-mGPT](https://huggingface.co/papers/2408.02657), trained from scratch on a world of toys,\n"
        "as a [diffusers](https://huggingface.co/docs/diffusers) pipeline."
    ),
    licence="Apache-2.0. Weights and data were made by the scripts in `examples/pocket` of `lumina-mgpt-diffusers`.",
    image_to_image_example='image = pipe("Make the cube red", image="toys.png", generator=generator).images[0]',
)
