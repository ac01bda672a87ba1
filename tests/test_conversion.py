# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whole checkpoints from the original form to a diffusers pipeline and back."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from lumina_mgpt_diffusers.files import staging_folder
from lumina_mgpt_diffusers.lumina_mgpt.scheduling_lumina_mgpt import LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt.transformer_lumina_mgpt import LuminaMGPTTransformer
from lumina_mgpt_diffusers.original import convert_diffusers_to_original, convert_original_to_diffusers
from lumina_mgpt_diffusers.original.checkpoint import Shard
from lumina_mgpt_diffusers.original.layout import original_as_diffusers


ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINT = FIXTURES / "7b_like" / "ckpt"
VQGAN = FIXTURES / "vqgan"
IDS = torch.tensor([[0, 8943, 9322, 8973, 8710, 8197, 8806, 8806, 4, 5, 6, 7, 8803]])


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def convert(checkpoint: Path, output: Path, **kwargs) -> Path:
    return convert_original_to_diffusers(checkpoint, output, original_vqgan=VQGAN, **kwargs)


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    """
    A checkpoint with all that sets the 34B model apart: `swin_norm`, grouped keys and values, two norm rows of which
    each serves several heads, three shards, and weights of the VQ encoder in them.
    """
    folder = tmp_path_factory.mktemp("big")
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    settings = json.loads((CHECKPOINT / "config.json").read_text())
    settings |= {"swin_norm": True, "num_attention_heads": 8, "num_key_value_heads": 4, "model_parallel_size": 2}
    (folder / "config.json").write_text(json.dumps(settings))

    torch.manual_seed(0)
    model = ChameleonForConditionalGeneration(ChameleonConfig.from_pretrained(folder))
    tensors = {}
    for name, tensor in model.state_dict().items():
        if "_norm." in name and "self_attn" in name:
            tensor = torch.randn(2, 8)
        elif "layernorm" in name:
            tensor = 1 + torch.randn(64) / 4
        tensors[name] = tensor.to(torch.bfloat16)
    assert any(name.startswith("model.vqmodel.encoder.") for name in tensors)
    shards = [
        {name: tensor for name, tensor in tensors.items() if "layers.0" in name},
        {name: tensor for name, tensor in tensors.items() if "layers.1" in name or "vqmodel" in name},
        {name: tensor for name, tensor in tensors.items() if "layers" not in name and "vqmodel" not in name},
    ]
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-00003.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def converted(big, tmp_path_factory) -> Path:
    return convert(big, tmp_path_factory.mktemp("converted") / "pipeline", base_size=512)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return LuminaMGPTTransformer.from_pretrained(folder, dtype=torch.float32)(IDS).logits


def stock_logits(folder: Path) -> torch.Tensor:
    model = ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.lm_head(model.model(IDS).last_hidden_state)


def test_converted_equals_the_original(big, converted):
    direct = logits(big)
    assert direct.std() > 0.1
    assert torch.equal(logits(converted / "transformer"), direct)
    torch.testing.assert_close(stock_logits(converted / "transformer"), direct, rtol=0, atol=1e-5)


def test_norms_go_to_the_heads_of_their_shard(big, converted):
    original, new = tensors_in(big), tensors_in(converted / "transformer")
    for kind in ("weight", "bias"):
        query, key = (f"model.layers.1.self_attn.{norm}_norm.{kind}" for norm in "qk")
        for head in range(8):
            assert torch.equal(new[query][head], original[query][head // 4])
        for head in range(4):
            assert torch.equal(new[key][head], original[key][head // 2])


def test_files_of_the_transformer(converted):
    folder = converted / "transformer"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = tensors_in(folder)
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert not any("vqmodel" in name for name in tensors)
    for file in set(index["weight_map"].values()):
        with safe_open(folder / file, framework="pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            assert {name for name, place in index["weight_map"].items() if place == file} == set(shard.keys())


def test_folder_is_what_the_original_is_presented_as(big, converted):
    with original_as_diffusers(big, original_vqgan=VQGAN, base_size=512) as presented:
        expected = {name: content for name, content in files_in(Path(presented)).items() if "model-0" not in name}
    actual = {name: content for name, content in files_in(converted).items() if "model-0" not in name}
    index = "transformer/model.safetensors.index.json"
    assert {**expected, index: b""} == {**actual, index: b""}


def test_one_file_is_written_as_safetensors_writes_it(tmp_path):
    output = convert(CHECKPOINT, tmp_path / "pipeline", base_size=512)
    path = output / "transformer" / "model.safetensors"
    assert not (output / "transformer" / "model.safetensors.index.json").exists()
    save_file(load_file(path), tmp_path / "reference.safetensors", metadata={"format": "pt"})
    assert path.read_bytes() == (tmp_path / "reference.safetensors").read_bytes()
    assert torch.equal(logits(output / "transformer"), logits(CHECKPOINT))


def test_round_trip(big, converted, tmp_path):
    back = convert_diffusers_to_original(converted, tmp_path / "back")
    expected = {name: tensor for name, tensor in tensors_in(big).items() if "vqmodel" not in name}
    actual = tensors_in(back)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name

    config, original = (json.loads((folder / "config.json").read_text()) for folder in (back, big))
    assert original.keys() <= config.keys()
    assert (config.pop("bos_token_id"), config.pop("eos_token_id"), config.pop("pad_token_id")) == (0, 8710, 1)
    assert original.pop("vq_config").items() <= config.pop("vq_config").items()
    for name in ("bos_token_id", "eos_token_id", "transformers_version"):
        original.pop(name)
    assert {name: config[name] for name in original} == original
    names = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert names < {path.name for path in back.iterdir()}
    special = [json.loads((folder / "special_tokens_map.json").read_text()) for folder in (back, big)]
    assert special[0] == special[1]

    again = convert_original_to_diffusers(back, tmp_path / "again", original_vqgan=back, base_size=512)
    first, second = files_in(converted), files_in(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_round_trip_of_a_saved_transformer(converted, big, tmp_path):
    shutil.copytree(converted, tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved" / "transformer")
    LuminaMGPTTransformer.from_pretrained(converted / "transformer").save_pretrained(tmp_path / "saved/transformer")
    back = convert_diffusers_to_original(tmp_path / "saved", tmp_path / "back")
    expected = {name: tensor for name, tensor in tensors_in(big).items() if "vqmodel" not in name}
    actual = tensors_in(back)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_back_from_a_hub_id_without_network(converted, big, tmp_path):
    repository = tmp_path / "models--someone--converted"
    shutil.copytree(converted, repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    kwargs = {"cache_dir": tmp_path, "local_files_only": True}
    back = convert_diffusers_to_original("someone/converted", tmp_path / "back", **kwargs)
    assert torch.equal(tensors_in(back)["lm_head.weight"], tensors_in(big)["lm_head.weight"])


@pytest.mark.parametrize("norm", ["q_norm", "k_norm"])
def test_unequal_norm_rows_have_no_way_back(converted, tmp_path, norm):
    shutil.copytree(converted, tmp_path / "tuned")
    name = f"model.layers.1.self_attn.{norm}.weight"
    for path in (tmp_path / "tuned" / "transformer").glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name][1] += 1
            save_file(tensors, path)
    with pytest.raises(ValueError, match=f"Layer 1: the rows of '{name}' differ within one of the 2 shards"):
        convert_diffusers_to_original(tmp_path / "tuned", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_rows_that_no_heads_can_share(big, tmp_path):
    name = "model.layers.0.self_attn.q_norm.weight"
    shutil.copytree(big, tmp_path / "odd")
    for path in (tmp_path / "odd").glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            save_file({**tensors, name: torch.ones(3, 8)}, path)
    with pytest.raises(ValueError, match=f"1 of another shape \\({name} \\(3, 8\\) instead of \\(8, 8\\)\\)"):
        convert(tmp_path / "odd", tmp_path / "out", base_size=512)
    with pytest.raises(ValueError, match=f"1 of another shape \\({name} \\(3, 8\\) instead of \\(8, 8\\)\\)"):
        LuminaMGPTTransformer.from_pretrained(tmp_path / "odd")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dtype(big, tmp_path, dtype):
    output = convert(big, tmp_path, base_size=512, dtype=dtype)
    original = tensors_in(big)
    for name, tensor in tensors_in(output / "transformer").items():
        assert tensor.dtype == dtype
        if "_norm." not in name:
            assert torch.equal(tensor, original[name].to(dtype))
    config = ChameleonConfig.from_pretrained(output / "transformer")
    assert config.dtype == dtype
    vqvae = load_file(output / "vqvae" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in vqvae.values()} == {torch.float32}


def interrupt_after(monkeypatch, num_shards: int) -> None:
    """Interrupt the conversion in the middle of the shard after the first `num_shards`."""
    written = []
    as_it_is = Shard._read

    def tensors(shard):
        for number, item in enumerate(as_it_is(shard)):
            if number == 2 and len(written) == num_shards:
                raise KeyboardInterrupt
            yield item
        written.append(shard.name)

    monkeypatch.setattr(Shard, "_read", tensors)


@pytest.fixture
def interrupted(big, tmp_path, monkeypatch) -> Path:
    with monkeypatch.context() as context:
        interrupt_after(context, 1)
        with pytest.raises(KeyboardInterrupt):
            convert(big, tmp_path / "pipeline", base_size=512)
    return tmp_path / "pipeline"


def test_an_interrupted_conversion_is_finished_later(big, converted, interrupted):
    first = interrupted / "transformer" / "model-00001-of-00003.safetensors"
    assert [path for path in interrupted.rglob("*") if path.is_file()] == [first]
    before = first.stat()
    # What a process that was killed outright leaves behind.
    (interrupted / ".incomplete").mkdir()
    (interrupted / ".incomplete" / "model_index.json").write_text("{")
    (interrupted / ".incomplete" / "model-00002-of-00003.safetensors").write_bytes(b"half")
    convert(big, interrupted, base_size=512)
    after = first.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert files_in(interrupted) == files_in(converted)


def test_a_finished_shard_is_verified(big, converted, interrupted):
    first = interrupted / "transformer" / "model-00001-of-00003.safetensors"
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    convert(big, interrupted, base_size=512)
    assert files_in(interrupted) == files_in(converted)


def test_shards_of_another_type_are_not_kept(big, interrupted):
    convert(big, interrupted, base_size=512, dtype=torch.float16)
    assert {tensor.dtype for tensor in tensors_in(interrupted / "transformer").values()} == {torch.float16}


def test_shards_of_another_source_are_not_mixed_in(interrupted):
    with pytest.raises(FileExistsError, match="holds weights of another conversion"):
        convert(CHECKPOINT, interrupted, base_size=512)
    assert not (interrupted / "model_index.json").exists()


def test_a_failure_before_the_end_leaves_no_pipeline(big, tmp_path, monkeypatch):
    as_it_is = os.replace

    def replace(source, target):
        if Path(target).name == "model_index.json":
            raise OSError("No space left on device")
        as_it_is(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        convert(big, tmp_path, base_size=512)
    assert not (tmp_path / "model_index.json").exists()
    assert (tmp_path / "vqvae" / "config.json").exists()


def test_a_finished_folder_is_kept(big, converted, tmp_path):
    output = tmp_path / "pipeline"
    shutil.copytree(converted, output)
    (output / "README.md").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    convert(big, output, base_size=512)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before

    for other in ({"dtype": torch.float32}, {"base_size": 1024}):
        with pytest.raises(FileExistsError, match="is finished and made from something else"):
            convert(big, output, **{"base_size": 512, **other})
    with pytest.raises(FileExistsError, match="holds weights of another conversion"):
        convert(CHECKPOINT, output, base_size=512)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_a_refused_folder_is_not_changed(big, converted, tmp_path):
    output = tmp_path / "pipeline"
    shutil.copytree(converted, output)
    # One shard would have to be written again, but another file is not that of this conversion.
    (output / "transformer" / "model-00001-of-00003.safetensors").unlink()
    (output / "vqvae" / "config.json").write_text("{}")
    before = files_in(output)
    with pytest.raises(FileExistsError, match="'vqvae/config.json' would change"):
        convert(big, output, base_size=512)
    assert files_in(output) == before


def test_of_two_conversions_one_is_refused(big, tmp_path):
    with staging_folder(tmp_path / "out"):
        with pytest.raises(BlockingIOError, match="Another process is writing to .*out"):
            convert(big, tmp_path / "out", base_size=512)
    convert(big, tmp_path / "out", base_size=512)
    assert not any(path.name.startswith(".incomplete") for path in (tmp_path / "out").iterdir())


def test_not_a_pipeline(tmp_path):
    with pytest.raises(OSError, match="`pipeline`: the folder .* has no `transformer/config.json`"):
        convert_diffusers_to_original(CHECKPOINT, tmp_path / "back")


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "conversion" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(monkeypatch, **options) -> None:
    monkeypatch.setattr(
        sys, "argv", ["script", *(word for key, value in options.items() for word in (f"--{key}", value))]
    )


def test_scripts(big, converted, tmp_path, monkeypatch):
    """Both, one as a user runs it."""
    checkpoint = tmp_path / "Lumina-mGPT-34B-512"
    shutil.copytree(big, checkpoint)
    paths = ("--checkpoint_path", checkpoint, "--vqgan_path", VQGAN / "vqgan.ckpt", "--output_path", "pipeline")
    command = [sys.executable, ROOT / "conversion" / "convert_original_to_diffusers.py", *paths]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    progress = result.stderr
    assert (result.returncode, result.stdout) == (0, ""), progress
    assert "[1/3] model-00001-of-00003.safetensors" in progress and "[3/3]" in progress
    assert "base size" not in progress
    assert files_in(tmp_path / "pipeline") == files_in(converted)
    monkeypatch.chdir(tmp_path)
    arguments(monkeypatch, pipeline_path="pipeline", output_path="back")
    script("convert_diffusers_to_original").main()
    assert (tmp_path / "back" / "original_tokenizers" / "vqgan.ckpt").exists()


def test_script_says_which_base_size_it_takes(tmp_path, monkeypatch, caplog):
    options = {"checkpoint_path": str(CHECKPOINT), "vqgan_path": str(VQGAN), "output_path": str(tmp_path)}
    arguments(monkeypatch, **options, dtype="float16", tokenizer_path=str(CHECKPOINT))
    script("convert_original_to_diffusers").main()
    assert "states the base size: 768 is taken" in caplog.text
    assert LuminaMGPTScheduler.from_pretrained(tmp_path, subfolder="scheduler").config.resolution == 768
    assert tensors_in(tmp_path / "transformer")["lm_head.weight"].dtype == torch.float16


@pytest.mark.parametrize("has_card", [False, True])
def test_script_pushes_the_finished_folder(tmp_path, monkeypatch, has_card):
    module = script("convert_original_to_diffusers")
    calls = []

    class Repository:
        repo_id = "someone/converted"

    class Api:
        def create_repo(self, repository, exist_ok):
            calls.append(("create", repository, exist_ok))
            return Repository

        def file_exists(self, repository, name):
            return has_card

        def upload_folder(self, repo_id, folder_path, ignore_patterns):
            assert (Path(folder_path) / "model_index.json").exists()
            assert "someone/converted" in (Path(folder_path) / "README.md").read_text()
            calls.append(("upload", repo_id, folder_path, ignore_patterns))

    monkeypatch.setattr(module, "HfApi", Api)
    options = {"checkpoint_path": str(CHECKPOINT), "vqgan_path": str(VQGAN), "output_path": str(tmp_path)}
    arguments(monkeypatch, **options, base_size="512", push_to_hub="converted")
    module.main()
    # The card of whoever owns the repository is not overwritten.
    kept = "README.md" if has_card else None
    assert calls == [("create", "converted", True), ("upload", "someone/converted", tmp_path, kept)]


def peak_memory(*command: str | Path) -> int:
    """Bytes that a command had resident at most."""
    # A process counts what the one it was forked from had resident, so a small one stands between.
    launcher = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    words = [sys.executable, "-c", launcher, sys.executable, *command]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout) * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
def test_memory_of_one_shard_is_enough(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, checkpoint, ignore=shutil.ignore_patterns("*.safetensors"))
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 16, "model_parallel_size": 4}
    sizes |= {"num_attention_heads": 32, "num_key_value_heads": 32}
    config = json.loads((CHECKPOINT / "config.json").read_text()) | sizes
    (checkpoint / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        names = ChameleonForConditionalGeneration(ChameleonConfig.from_pretrained(checkpoint)).state_dict()
    shapes = {name: tensor.shape for name, tensor in names.items() if "vqmodel" not in name}
    shapes |= {name: (4, 128) for name in shapes if "q_norm" in name or "k_norm" in name}
    weight_map = {}
    for name in shapes:
        layer = int(name.split(".")[2]) if "layers" in name else 15
        weight_map[name] = f"model-{layer // 4 + 1:05d}-of-00004.safetensors"
    for file in sorted(set(weight_map.values())):
        tensors = {
            name: torch.randint(0, 2**14, shape, dtype=torch.int16).view(torch.bfloat16)
            for name, shape in shapes.items()
            if weight_map[name] == file
        }
        save_file(tensors, checkpoint / file, metadata={"format": "pt"})
        del tensors
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    shard_sizes = [path.stat().st_size for path in checkpoint.glob("*.safetensors")]
    assert sum(shard_sizes) >= 6e9 and len(shard_sizes) >= 4

    baseline = peak_memory("-c", "import lumina_mgpt_diffusers.original, lumina_mgpt_diffusers.lumina_mgpt")
    paths = ("--checkpoint_path", checkpoint, "--vqgan_path", VQGAN, "--output_path", tmp_path / "pipeline")
    command = (ROOT / "conversion" / "convert_original_to_diffusers.py", *paths)
    assert baseline < max(shard_sizes)
    for run in ("convert", "verify", "cast to float32"):
        options = ("--dtype", "float32") if "cast" in run else ()
        if options:
            shutil.rmtree(tmp_path / "pipeline")
        written = max(shard_sizes) * (2 if options else 1)
        peak = peak_memory(*command, *options)
        print(f"{run}: {peak / 1e9:.2f} GB, baseline {baseline / 1e9:.2f} GB, shard {written / 1e9:.2f} GB")
        assert peak < baseline + 1.5 * written
