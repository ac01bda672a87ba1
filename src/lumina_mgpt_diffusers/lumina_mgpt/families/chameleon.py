# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Chameleon (https://huggingface.co/papers/2405.09818), which Lumina-mGPT was fine-tuned from, and Anole
(https://huggingface.co/papers/2407.06135), a Chameleon that draws.
"""

from .description import CodeTokens, ModelFamily


CHAMELEON = ModelFamily(
    name="chameleon",
    title="Chameleon",
    codes=CodeTokens("IMGIMG", "Z", digits="ABCDEFGHIJ"),
    start_token="<racm3:break>",
    end_token="<eoss>",
    row_end_token=None,
    separator_token="<reserved08706>",
    size_tag_token=None,
    grid_size=512,
    base_size=512,
    first_token="<s>",
    pad_token="<pad>",
    original_eos_token="</s>",
    guides_from_first_token=True,
    text_to_image="{prompt}",
    caption="Describe the image in detail. <|image|>",
    released_names={r"(?i:chameleon|anole)-\d+b(?:-v[\d.]+)?(?:-hf)?": None},
    sampler={"guidance_scale": 3.0, "temperature": 0.7, "top_k": 0, "top_p": 0.9},
    card={
        "license": "other",
        "license_name": "chameleon-research-license",
        "license_link": "https://github.com/facebookresearch/chameleon/blob/main/LICENSE",
    },
    description=(
        "An autoregressive model of text and images ([Chameleon](https://huggingface.co/papers/2405.09818)) as a\n"
        "[diffusers](https://huggingface.co/docs/diffusers) pipeline."
    ),
    licence=(
        "The weights are those of [Chameleon](https://github.com/facebookresearch/chameleon), or derive from them, and"
        " are under\nthe Chameleon Research License: non-commercial research only, outputs included; redistribution"
        " under the same terms and\nwith its notice."
    ),
)
