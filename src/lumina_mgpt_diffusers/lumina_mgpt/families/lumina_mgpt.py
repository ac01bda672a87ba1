# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Lumina-mGPT (https://huggingface.co/papers/2408.02657), fine-tuned from Chameleon."""

from ..tasks import Task
from ..visual_results import read_depth, read_labels, read_normals
from .description import CodeTokens, ModelFamily


LUMINA_MGPT = ModelFamily(
    name="lumina-mgpt",
    title="Lumina-mGPT",
    codes=CodeTokens("IMGIMG", "Z", digits="ABCDEFGHIJ"),
    start_token="<racm3:break>",
    end_token="<eoss>",
    row_end_token="<reserved08799>",
    separator_token="<reserved08706>",
    size_tag_token="<reserved{number:05d}>",
    first_size_tag=8800,
    first_token="<s>",
    pad_token="<pad>",
    original_eos_token="</s>",
    text_to_image="Generate an image of {width}x{height} according to the following prompt:\n{prompt}",
    multiview="Generate {num_views} object views of {width}x{height} according to the following prompt: {prompt}",
    caption="Describe the image in detail. <|image|>",
    tasks={
        "edit": Task("{prompt} <|image|>", guidance_scale=4.0, temperature=1.0, top_k=2000),
        "depth": Task("Depth estimation. <|image|>", 1.0, 1.0, 200, read_depth),
        "normal": Task("Surface normal estimation. <|image|>", 1.0, 1.0, 200, read_normals),
        "segmentation": Task("Semantic segmentation. <|image|>", 1.0, 1.0, 200, read_labels),
        "pose": Task("Human pose estimation. <|image|>", 1.0, 1.0, 200),
        "detection": Task("Detect: {prompt} <|image|>", 1.0, 1.0, 200),
        "control": Task(
            "Generate an image according to the provided image, and according to the following caption:\n"
            "{prompt} <|image|>",
            guidance_scale=1.0,
            temperature=1.0,
            top_k=2000,
        ),
    },
    released_names={r"Lumina-mGPT-\d+B-(\d+)(?:-Omni|-MultiImage)?(?:-bnb-int4)?": None},
    tokenizer_repository="Alpha-VLLM/Lumina-mGPT-7B-768",
    card={
        "license": "other",
        "license_name": "chameleon-research-license",
        "license_link": "https://github.com/facebookresearch/chameleon/blob/main/LICENSE",
    },
    description=(
        "An autoregressive model of text and images ([Lumina-mGPT](https://huggingface.co/papers/2408.02657)) as a\n"
        "[diffusers](https://huggingface.co/docs/diffusers) pipeline."
    ),
    licence=(
        "The weights derive from [Chameleon](https://github.com/facebookresearch/chameleon) and are under the"
        " Chameleon Research\nLicense: non-commercial research only, outputs included; redistribution under the same"
        " terms and with its notice."
    ),
)
