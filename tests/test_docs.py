# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Every code block of the documentation runs, on a tiny model and a CPU in the place of a GPU if there is none."""

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from conftest import CHECKPOINT, MOVQGAN, VQGAN
from diffusers import DiffusionPipeline
from hub_server import HubServer
from peft import LoraConfig, get_peft_model_state_dict

import lumina_mgpt_diffusers
from lumina_mgpt_diffusers import LuminaMGPTPipeline
from lumina_mgpt_diffusers.lumina_mgpt.families import families, registry


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ["index", "loading", "sampling", "memory_and_speed", "lora", "modular", "serving"]
BLOCK = re.compile(r"(?:<!-- needs (?P<needs>.+?) -->\n)?```py\n(?P<code>.*?)```", re.DOTALL)


def blocks_of(page: str) -> list[tuple[list[str], str]]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    found = [((match["needs"] or "").split(", "), match["code"]) for match in BLOCK.finditer(text)]
    assert len(found) == text.count("```py")
    return found


def is_there(need: str) -> bool:
    return torch.cuda.is_available() if need == "a GPU" else not need or importlib.util.find_spec(need) is not None


def made_small(code: str) -> str:
    code = re.sub(r"height=\d+, width=\d+", "height=32, width=32", code)
    code = re.sub(r"height=\[\d+, \d+\], width=\[\d+, \d+\]", "height=[32, 64], width=[64, 32]", code)
    code = code.replace("Alpha-VLLM/Lumina-mGPT-7B-768", str(CHECKPOINT))
    if not torch.cuda.is_available():
        code = code.replace('"cuda"', '"cpu"')
    return code


@pytest.fixture
def workplace(saved_folder, tmp_path, monkeypatch) -> Path:
    """A folder with all that the documentation names."""
    shutil.copytree(saved_folder, tmp_path / "lumina-mgpt-7b-768")
    shutil.copytree(VQGAN, tmp_path / "chameleon" / "tokenizer")
    # Calls without a size take the base size.
    scheduler = tmp_path / "lumina-mgpt-7b-768" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"resolution": 96', '"resolution": 32'))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_adapters(folder: Path) -> None:
    pipe = LuminaMGPTPipeline.from_pretrained(folder / "lumina-mgpt-7b-768")
    for name in ("fox", "snow"):
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), name)
        state = get_peft_model_state_dict(pipe.transformer, adapter_name=name, save_embedding_layers=False)
        pipe.save_lora_weights(folder / f"{name}-style", state)


@pytest.mark.parametrize("page", PAGES)
def test_a_page(workplace, page):
    if page == "lora":
        write_adapters(workplace)
    namespace: dict = {}
    for needs, code in blocks_of(page):
        block = compile(made_small(code), f"docs/{page}.md", "exec")
        if all(map(is_there, needs)):
            exec(block, namespace)


def test_the_page_about_families(workplace, checkpoint_2, monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", families())
    PIL.Image.new("RGB", (32, 32), "gray").save("depth.png")
    PIL.Image.new("RGB", (32, 32), "red").save("fox.png")
    shutil.copy(MOVQGAN / "movqgan_270M.ckpt", ".")
    shutil.copytree(checkpoint_2, "lumina-mgpt-2")
    config = json.loads(Path("lumina-mgpt-2/config.json").read_text())
    Path("lumina-mgpt-2/config.json").write_text(json.dumps(config | {"base_size": 32}))
    namespace: dict = {}
    for _, code in blocks_of("families"):
        code = code.replace("Alpha-VLLM/Lumina-mGPT-2.0", "lumina-mgpt-2")
        code = code.replace("leloy/Anole-7b-v0.1-hf", str(CHECKPOINT))
        code = code.replace("leloy/Anole-7b-v0.1-vqvae-hf", "chameleon/tokenizer")
        code = code.replace("height=1024, width=512", "width=32, height=64")  # which is small already
        exec(compile(made_small(code), "docs/families.md", "exec"), namespace)
    panels, fox, depth = (namespace[name] for name in ("panels", "fox", "depth"))
    assert (panels.size, fox.size, depth.shape) == ((32, 64), (32, 32), (32, 32))
    assert namespace["anole"].family.fixed_side == 512 and namespace["anole"].can_draw
    assert namespace["small"].family.name == "small" and (workplace / "lumina-mgpt-2.0").is_dir()


def test_the_page_about_the_hub(workplace):
    code = "\n".join(made_small(code) for _, code in blocks_of("hub"))
    repositories = {"user/lumina-mgpt-7b-768": {"main": workplace / "lumina-mgpt-7b-768"}}
    with HubServer(repositories, storage=workplace / "hub") as server:
        environment = {**os.environ, **server.environment(workplace / "cache")}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
        assert "user/my-lumina-mgpt" in server.repositories


def test_the_table_of_contents_lists_every_page():
    (section,) = yaml.safe_load((DOCS / "_toctree.yml").read_text())
    assert {page["local"] for page in section["sections"]} == {page.stem for page in DOCS.glob("*.md")}


def test_the_tables_name_what_there_is():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    call, methods = text.split("| method of the pipeline | here |")
    rows = [line.split(" | ") for line in methods.splitlines() if line.startswith("| `")]
    for names, meaning, *_ in rows:
        for name in re.findall(r"`\.?(\w+)", names):
            if name not in ("transformer", "torch", "device_map", "scheduler"):
                assert hasattr(LuminaMGPTPipeline, name) != meaning.startswith("not there"), name
    arguments = LuminaMGPTPipeline.__call__.__wrapped__.__code__.co_varnames
    rows = [line.split(" | ") for line in call.split("| argument of the call |")[1].splitlines() if line[:3] == "| `"]
    for names, meaning, *_ in rows:
        for name in re.findall(r"`(\w+)", names):
            assert (name in arguments) != (meaning.startswith(("not there", "there are no"))), name


def test_every_name_in_an_autodoc_exists():
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"\[\[autodoc\]\] (\S+)", page.read_text(encoding="utf-8")):
            assert hasattr(lumina_mgpt_diffusers, name)


def test_a_script_for_other_pipelines_runs(workplace, monkeypatch, capsys):
    arguments = ["--model", "lumina-mgpt-7b-768", "--negative_prompt", "blurry", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["drop_in.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / "drop_in.py"), run_name="__main__")
    assert capsys.readouterr().out == ""
    assert {path.name for path in workplace.glob("*.png")} == {"image-0.png", "image-1.png"}
    assert type(DiffusionPipeline.from_pretrained("lumina-mgpt-7b-768")) is LuminaMGPTPipeline
