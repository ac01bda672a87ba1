# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Every way to load a pipeline: from a folder, from a Hub, and from the Hub's cache without a network."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import CHECKPOINT, VQGAN
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from hub_server import HubServer

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTScheduler


PROMPT = "a red fox in the snow"
CALL = {"height": 32, "width": 64, "output_type": "latent"}

PREAMBLE = """
import json, sys
import diffusers
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline

# Which asks for it wherever a repository of the Hub holds code files, though it does not run them.
trust = {"trust_remote_code": True} if diffusers.__version__.startswith("0.37.") else {}

def codes_of(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    codes = pipe("a red fox in the snow", height=32, width=64, generator=generator, output_type="latent").images
    return {"class": type(pipe).__name__, "codes": codes.flatten().tolist()}

result = {}
"""
IMPORT = "from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTScheduler\n"


def codes_of(pipe) -> list[int]:
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, generator=torch.Generator().manual_seed(0), **CALL).images.flatten().tolist()


@pytest.fixture(scope="module")
def expected(random_pipe) -> dict:
    return {"class": "LuminaMGPTPipeline", "codes": codes_of(random_pipe)}


def run(code: str, **environment: str) -> dict:
    """Run code in a process of its own and return what it puts into `result`."""
    process = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code + "\nsys.stderr.flush()\nprint(json.dumps(result))"],
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    # Nothing of ours prints: the one line is that of this function.
    (line,) = process.stdout.splitlines()
    return json.loads(line)


# From a folder


@pytest.mark.parametrize("loader", [LuminaMGPTPipeline, DiffusionPipeline, AutoPipelineForText2Image])
def test_from_a_folder(loader, saved_folder, expected):
    pipe = loader.from_pretrained(saved_folder)
    assert type(pipe) is LuminaMGPTPipeline
    assert codes_of(pipe) == expected["codes"]


def test_loading_warns_of_nothing_and_prints_nothing(saved_folder, capsys, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LuminaMGPTPipeline.from_pretrained(saved_folder, dtype=torch.float32)
        LuminaMGPTPipeline.from_pretrained(
            saved_folder, dtype=torch.float32, scheduler=LuminaMGPTScheduler(resolution=64)
        )
    assert capsys.readouterr().out == ""
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated")
def test_dtypes(saved_folder, keyword):
    one = LuminaMGPTPipeline.from_pretrained(saved_folder, **{keyword: torch.bfloat16})
    assert one.transformer.dtype == one.vqvae.dtype == one.dtype == torch.bfloat16
    several = {"transformer": torch.bfloat16, "default": torch.float16}
    several = LuminaMGPTPipeline.from_pretrained(saved_folder, **{keyword: several})
    assert (several.transformer.dtype, several.vqvae.dtype) == (torch.bfloat16, torch.float16)
    # A cast of the rotary frequencies would move the logits by about 1.
    assert one.transformer.model.rotary_emb.inv_freq.dtype == torch.float32


def test_variants(random_pipe, saved_folder, tmp_path, expected):
    random_pipe.save_pretrained(tmp_path, variant="bf16")
    weights = {path.name for path in tmp_path.rglob("*.safetensors")}
    assert weights == {"model.bf16.safetensors", "diffusion_pytorch_model.bf16.safetensors"}
    assert codes_of(LuminaMGPTPipeline.from_pretrained(tmp_path, variant="bf16")) == expected["codes"]
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=bf16`"):
        LuminaMGPTPipeline.from_pretrained(saved_folder, variant="bf16")


def test_low_cpu_mem_usage(saved_folder, expected):
    for value in (True, False):
        assert codes_of(LuminaMGPTPipeline.from_pretrained(saved_folder, low_cpu_mem_usage=value)) == expected["codes"]


def test_passed_components_are_used(random_pipe, saved_folder):
    components = {**random_pipe.components, "scheduler": LuminaMGPTScheduler(resolution=64, top_k=1)}
    for loader in (LuminaMGPTPipeline, DiffusionPipeline, AutoPipelineForText2Image):
        pipe = loader.from_pretrained(saved_folder, **components)
        assert all(getattr(pipe, name) is component for name, component in components.items())


# From a Hub


@pytest.fixture(scope="module")
def hub(saved_folder, random_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    random_pipe.save_pretrained(folder / "variant", variant="bf16")
    shutil.copytree(saved_folder, folder / "old")
    LuminaMGPTScheduler(resolution=64, guidance_scale=1.0).save_pretrained(folder / "old" / "scheduler")
    (folder / "bare").mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(CHECKPOINT / name, folder / "bare")
    repositories = {
        "tiny/pipeline": {"main": saved_folder, "old": folder / "old"},
        "tiny/variant": {"main": folder / "variant"},
        "tiny/Lumina-mGPT-7B-512": {"main": folder / "bare"},
        "tiny/vqgan": {"main": VQGAN},
        "Alpha-VLLM/Lumina-mGPT-7B-768": {"main": CHECKPOINT},
    }
    with HubServer(repositories, storage=folder / "pushed") as server:
        yield server


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


# A process is dear, so that one does all that is done with the Hub, and one all that is done without a network.
WITHOUT_IMPORT = """
assert not any(name.startswith("lumina_mgpt_diffusers") for name in sys.modules)
result["no import"] = codes_of(
    DiffusionPipeline.from_pretrained(model, custom_pipeline=model, trust_remote_code=True)
)
"""

ROUTES = """
result["explicit"] = codes_of(LuminaMGPTPipeline.from_pretrained("tiny/pipeline", **trust))
result["diffusion"] = codes_of(DiffusionPipeline.from_pretrained("tiny/pipeline", **trust))
result["auto"] = codes_of(AutoPipelineForText2Image.from_pretrained("tiny/pipeline", **trust))
result["variant"] = codes_of(DiffusionPipeline.from_pretrained("tiny/variant", **trust, variant="bf16"))
old = DiffusionPipeline.from_pretrained("tiny/pipeline", **trust, revision="old")
result["revision"] = old.scheduler.config.resolution
original = LuminaMGPTPipeline.from_pretrained(
    "tiny/Lumina-mGPT-7B-512", original_vqgan="tiny/vqgan", dtype=torch.float32
)
result["original"] = codes_of(original)
result["original size"] = original.scheduler.config.resolution
"""


@pytest.fixture(scope="module")
def filled_cache(hub, cache) -> tuple[Path, dict]:
    code = (
        "model = 'tiny/pipeline'"
        + WITHOUT_IMPORT
        + "__import__('huggingface_hub').snapshot_download(model)\n"
        + IMPORT
        + ROUTES
        + """
from pathlib import Path
folder = DiffusionPipeline.download("tiny/pipeline", **trust)
result["download"] = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
for name, kwargs in {"no variant": {"variant": "bf16"}, "no revision": {"revision": "none"}}.items():
    try:
        LuminaMGPTPipeline.from_pretrained("tiny/pipeline", **trust, **kwargs)
    except Exception as error:
        result[name] = f"{type(error).__name__}: {error}"
"""
    )
    return cache, run(code, **hub.environment(cache))


def check_routes(result: dict, expected: dict) -> None:
    for route in ("no import", "explicit", "diffusion", "auto", "variant", "original"):
        assert result[route] == expected, route
    assert result["revision"] == 64
    assert result["original size"] == 512


def test_from_a_hub(filled_cache, expected):
    result = filled_cache[1]
    check_routes(result, expected)
    assert "transformer/model.safetensors" in result["download"]
    assert "variant=bf16" in result["no variant"] and result["no variant"].startswith("ValueError")
    assert "none" in result["no revision"]


def test_from_the_cache_offline(filled_cache, expected):
    # For the id of a `custom_pipeline` diffusers asks the Hub even offline, but not for the folder in the cache.
    folder = "model = __import__('huggingface_hub').snapshot_download('tiny/pipeline')"
    code = folder + WITHOUT_IMPORT + IMPORT + ROUTES
    result = run(code, HF_HOME=os.fspath(filled_cache[0]), HF_HUB_OFFLINE="1")
    check_routes(result, expected)


def test_pushing_to_a_hub(hub, saved_folder, expected, tmp_path):
    # Cards that someone has edited, on the Hub and in a folder: they stay.
    there, here = tmp_path / "there", tmp_path / "here"
    for folder, text in ((there, "Mine."), (here, "Mine too.")):
        folder.mkdir()
        (folder / "README.md").write_text(f"---\nlicense: other\n---\n{text}\n")
    hub.repositories["tiny/edited"] = {"main": there}
    code = (
        IMPORT
        + f"""
pipe = LuminaMGPTPipeline.from_pretrained({str(saved_folder)!r})
pipe.push_to_hub("tiny/pushed")
pipe.push_to_hub("tiny/edited")
pipe.save_pretrained({str(here)!r}, push_to_hub=True, repo_id="tiny/edited-here")
result["pushed"] = codes_of(LuminaMGPTPipeline.from_pretrained("tiny/pushed", **trust))
"""
    )
    assert run(code, **hub.environment(tmp_path / "cache"))["pushed"] == expected
    folder, edited = (hub.repositories[f"tiny/{name}"]["main"] for name in ("pushed", "edited-here"))
    assert all(hub.files(one) == hub.files(saved_folder) for one in (folder, there, here, edited))
    card = (folder / "README.md").read_text()
    assert 'model = "tiny/pushed"' in card and "pipeline_tag: text-to-image" in card
    assert "Mine." in (there / "README.md").read_text()
    assert "Mine too." in (here / "README.md").read_text()
    assert "Mine too." in (edited / "README.md").read_text()
