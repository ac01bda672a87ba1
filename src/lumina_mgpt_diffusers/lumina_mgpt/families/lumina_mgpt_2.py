# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Lumina-mGPT 2.0 (https://huggingface.co/papers/2507.17801), trained from scratch."""

from ..tasks import PanelTask
from ..visual_results import read_depth
from .description import CodeTokens, ModelFamily


def _panels(shown: str, kind: str, kept: str) -> str:
    return (
        f"Generate a dual-panel image of {{width}}x{{height}} where the <{shown} half> displays a <{kind}>, while the"
        f" <{kept} half> retains the original image for direct visual comparison:\n{{prompt}}"
    )


_MAPS = {
    "depth": "depth map",
    "canny": "canny edge map",
    "hed": "hed edge map",
    "pose": "pose estimation map",
}

# What the original asks for where the upper half is a picture of the subject rather than a map.
_SUBJECT = "Bubbly and effervescent with a sparkling allure."

LUMINA_MGPT_2 = ModelFamily(
    name="lumina-mgpt-2",
    title="Lumina-mGPT 2.0",
    codes=CodeTokens("<MOVQGAN"),
    start_token="<racm3:break>",
    end_token="<eoss>",
    row_end_token="<reserved08799>",
    separator_token="<reserved08706>",
    size_tag_token="<reserved{number:05d}>",
    first_size_tag=8800,
    eos_token="<eoss>",
    text_to_image="Generate an image of {width}x{height} according to the following prompt:\n{prompt}",
    tasks={
        **{name: PanelTask(_panels("upper", kind, "lower")) for name, kind in _MAPS.items()},
        "subject": PanelTask(_panels("upper", _SUBJECT, "lower")),
        **{
            f"to_{name}": PanelTask(_panels("lower", kind, "upper"), to_array=read_depth if name == "depth" else None)
            for name, kind in _MAPS.items()
        },
    },
    sampler={"top_k": 4096, "text_top_k": 10},
    released_names={r"Lumina-mGPT-2\.0": 768, r"Lumina-mGPT-2\.0-Omni": 512},
    num_codes=16384,
    stride=8,
    vq_parameters=270_669_103,
    vq_values_per_pixel=2564,
    vq_file="movqgan/270M/movqgan_270M.ckpt",
    tokenizer_repository="Alpha-VLLM/Lumina-mGPT-2.0",
    card={"license": "apache-2.0"},
    description=(
        "An autoregressive model of images ([Lumina-mGPT 2.0](https://huggingface.co/papers/2507.17801)) as a\n"
        "[diffusers](https://huggingface.co/docs/diffusers) pipeline."
    ),
    licence=(
        "The [code of the model](https://github.com/Alpha-VLLM/Lumina-mGPT-2.0) is under the Apache License 2.0, and"
        " the model was\ntrained from scratch. The VQ model is MoVQGAN of https://huggingface.co/ai-forever/MoVQGAN,"
        " whose terms apply to it."
    ),
    image_to_image_example=(
        'image = pipe("a red fox in the snow", image="depth.png", task="depth", result_only=True,'
        " generator=generator).images[0]"
    ),
)
