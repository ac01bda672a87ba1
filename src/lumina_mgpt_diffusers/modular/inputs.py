# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Inputs of blocks as the pipelines have them: names, types, defaults and descriptions are those of their calls."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap

from diffusers.modular_pipelines import InputParam

from ..lumina_mgpt.pipeline_base import LuminaMGPTBasePipeline


def inputs_of(
    pipeline_class: type[LuminaMGPTBasePipeline], *names: str, required: tuple[str, ...] = ()
) -> list[InputParam]:
    """
    Arguments of the call of a pipeline as inputs of a block.

    Args:
        pipeline_class (`type`): The class of the pipeline.
        names (`str`): Names of the arguments.
        required (`tuple[str, ...]`): Those of them that the block cannot do without.
    """
    parameters = inspect.signature(pipeline_class.__call__).parameters
    descriptions = _descriptions(pipeline_class)
    return [
        InputParam(
            name,
            type_hint=parameters[name].annotation,
            default=parameters[name].default,
            required=name in required,
            description=descriptions[name],
        )
        for name in names
    ]


@functools.cache
def _descriptions(pipeline_class: type[LuminaMGPTBasePipeline]) -> dict[str, str]:
    """What the docstring of the call says of each argument."""
    arguments = re.split(r"\n *Args:\n", pipeline_class.__call__.__doc__)[1].split("\n\n")[0]
    descriptions = {}
    for entry in re.split(r"\n(?=\w)", textwrap.dedent(arguments)):
        head, text = entry.split(":\n", 1)
        descriptions |= dict.fromkeys(re.findall(r"(\w+) \(`", head), " ".join(text.split()))
    return descriptions
