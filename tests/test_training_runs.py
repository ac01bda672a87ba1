# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Runs of a few steps: resumed, accumulated, packed, interrupted by validation images, chained in stages."""

import copy
import dataclasses
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from conftest import BASE_SIZE
from diffusers import VQModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from training_helpers import make_photos, short_run, weights_of
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Trainer, TrainingArguments

from lumina_mgpt_diffusers import LUMINA_MGPT, LuminaMGPTPipeline, LuminaMGPTScheduler, LuminaMGPTTransformer
from lumina_mgpt_diffusers.training import fine_tune, fine_tune_progressively, packed_attention
from lumina_mgpt_diffusers.training.arguments import (
    FineTuningArguments,
    LoraArguments,
    parse_arguments,
)
from lumina_mgpt_diffusers.training.fine_tuning import zero_image_head
from lumina_mgpt_diffusers.training.optimizers import MuonWithAdamW


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="session")
def finished(saved_folder, photos, tmp_path_factory):
    """A run of four steps with a checkpoint after two. Tests may not change it."""
    output = tmp_path_factory.mktemp("runs") / "run"
    fine_tune(short_run(saved_folder, photos, output))
    return output


def equal(first, second) -> bool:
    first, second = weights_of(first), weights_of(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(first, second, tolerance: float) -> bool:
    first, second = weights_of(first), weights_of(second)
    return all(torch.allclose(first[name], second[name], rtol=0, atol=tolerance) for name in first)


@pytest.mark.slow
def test_compiled_layers_learn_the_same(saved_folder, photos, tmp_path):
    losses = []
    for name in ("plain", "compiled"):
        fine_tune(short_run(saved_folder, photos, tmp_path / name, compile=name == "compiled", dropout=0.0))
        state = json.loads((tmp_path / name / "checkpoint-4" / "trainer_state.json").read_text())
        losses.append([entry["loss"] for entry in state["log_history"] if "loss" in entry])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert losses[0] and np.allclose(*np.array(losses, dtype=float), rtol=1e-3)


def test_a_run_gives_a_pipeline_with_other_weights(finished, saved_folder):
    pipe = LuminaMGPTPipeline.from_pretrained(finished / "pipeline")
    assert type(pipe.transformer).__name__ == "LuminaMGPTTransformer"
    assert pipe.scheduler.config.resolution == BASE_SIZE
    assert pipe.transformer.config.use_cache
    assert weights_of(saved_folder).keys() == weights_of(finished / "pipeline").keys()
    assert not close(saved_folder, finished / "pipeline", 1e-4)
    assert "## Training" in (finished / "pipeline" / "README.md").read_text()
    norm = pipe.transformer.model.layers[0].self_attn.q_norm.weight
    assert torch.equal(norm, norm[:1].expand_as(norm))  # still one row of a shard, as in the original


def test_resumed_weights_are_those_of_an_undisturbed_run(finished, saved_folder, photos, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(finished, output, ignore=shutil.ignore_patterns("pipeline", "checkpoint-4"))
    shutil.copytree(output / "checkpoint-2", output / "checkpoint-3")  # killed while it was written
    (output / "checkpoint-3" / "trainer_state.json").unlink()
    fine_tune(short_run(saved_folder, photos, output))
    assert not (output / "checkpoint-3").exists()
    assert equal(output / "pipeline", finished / "pipeline")


def test_a_finished_run_is_left_alone(finished, saved_folder, photos):
    before = (finished / "pipeline").stat().st_mtime_ns
    assert fine_tune(short_run(saved_folder, photos, finished)) == finished / "pipeline"
    assert (finished / "pipeline").stat().st_mtime_ns == before


def test_validation_images_do_not_change_training(finished, saved_folder, photos, tmp_path):
    arguments = short_run(
        saved_folder,
        photos,
        tmp_path / "run",
        validation_prompts=["red fox"],
        validation_steps=1,
        report_to=["tensorboard"],
    )
    fine_tune(arguments)
    assert equal(tmp_path / "run" / "pipeline", finished / "pipeline")
    (log,) = (tmp_path / "run").glob("runs/*/events*")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("red fox")] == [1, 2, 3, 4]
    assert {"train/loss", "train/cross_entropy", "train/z_loss"} <= set(events.Tags()["scalars"])


def test_accumulated_batches_are_one_batch(saved_folder, photos, tmp_path):
    for name, values in {
        "one": {"train_batch_size": 4},
        "four": {"train_batch_size": 1, "gradient_accumulation_steps": 4},
    }.items():
        fine_tune(short_run(saved_folder, photos, tmp_path / name, dropout=0.0, max_train_steps=3, **values))
    assert close(tmp_path / "one" / "pipeline", tmp_path / "four" / "pipeline", 2e-5)


def test_packed_rows_train_like_padded_ones(saved_folder, photos, tmp_path, monkeypatch):
    values = {"dropout": 0.0, "max_train_steps": 2, "train_batch_size": 8}
    fine_tune(short_run(saved_folder, photos, tmp_path / "padded", **values))
    seen = []
    attend = packed_attention.sdpa_attention_forward
    monkeypatch.setattr(
        packed_attention, "sdpa_attention_forward", lambda *args, **kwargs: seen.append(1) or attend(*args, **kwargs)
    )
    fine_tune(short_run(saved_folder, photos, tmp_path / "packed", packing=True, **values))
    assert len(seen) == 2 * 8 * 2  # steps, samples and layers
    assert close(tmp_path / "padded" / "pipeline", tmp_path / "packed" / "pipeline", 2e-5)


def test_stages_start_from_the_last_and_go_on_between_them(saved_folder, photos, tmp_path):
    def stages(output):
        first = short_run(saved_folder, photos, output, resolution=64, max_train_steps=2)
        return [first, dataclasses.replace(first, resolution=BASE_SIZE)]

    first = fine_tune_progressively(stages(tmp_path / "a")[:1])
    before = first.stat().st_mtime_ns
    last = fine_tune_progressively(stages(tmp_path / "a"))
    assert first == tmp_path / "a" / "64" / "pipeline" and first.stat().st_mtime_ns == before
    assert last == tmp_path / "a" / str(BASE_SIZE) / "pipeline"
    assert LuminaMGPTPipeline.from_pretrained(first).scheduler.config.resolution == 64
    started = json.loads((last / "training.json").read_text())["pretrained_model_name_or_path"]
    assert started == str(first)
    with pytest.raises(ValueError, match=r"`resolution` of its own, but they are \[64, 64\]"):
        fine_tune_progressively(stages(tmp_path / "c")[:1] * 2)


def test_an_adapter_is_resumed_exactly_and_loads_in_the_pipeline(saved_folder, photos, tmp_path):
    def arguments(output):
        values = {"rank": 4, "lora_alpha": 8.0, "lora_layers": ["q_proj", "lm_head"], "lora_dropout": 0.1}
        return short_run(saved_folder, photos, output, LoraArguments, **values)

    fine_tune(arguments(tmp_path / "run"))
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "run", other, ignore=shutil.ignore_patterns("*.safetensors", "checkpoint-4"))
    shutil.copytree(tmp_path / "run" / "checkpoint-2", other / "checkpoint-2", dirs_exist_ok=True)
    fine_tune(arguments(other))
    first, second = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (other, tmp_path / "run"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

    pytest.importorskip("diffusers", minversion="0.42")  # older ones train adapters, but do not load them
    pipe = LuminaMGPTPipeline.from_pretrained(saved_folder)
    ids = torch.arange(20)[None] + 9000
    plain = pipe.transformer(input_ids=ids).logits
    pipe.load_lora_weights(tmp_path / "run")
    assert not torch.allclose(pipe.transformer(input_ids=ids).logits, plain, atol=1e-3)
    assert pipe.transformer.peft_config["default_0"].lora_alpha == 8


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_beside_quantised_weights_is_trained(saved_folder, photos, tmp_path, checkpointing):
    pytest.importorskip("bitsandbytes")
    values = {"quantization": "nf4", "gradient_checkpointing": checkpointing, "rank": 4}
    fine_tune(short_run(saved_folder, photos, tmp_path / "run", LoraArguments, **values))
    weights = load_file(tmp_path / "run" / "pytorch_lora_weights.safetensors")
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)


def test_stock_trainer_takes_the_data_as_it_is(finished, saved_folder, tmp_path):
    pipe = LuminaMGPTPipeline.from_pretrained(saved_folder)
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True
    )
    data = datasets.load_from_disk(str(finished / "data"))
    trainer = Trainer(pipe.transformer, arguments, DataCollatorForSeq2Seq(pipe.tokenizer), data)
    assert np.isfinite(trainer.train().training_loss)


@pytest.mark.slow
def test_sft_trainer_takes_the_data_as_it_is(finished, saved_folder, tmp_path):
    trl = pytest.importorskip("trl")
    pipe = LuminaMGPTPipeline.from_pretrained(saved_folder)
    arguments = trl.SFTConfig(
        output_dir=tmp_path,
        max_steps=1,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=None,
    )
    data = datasets.load_from_disk(str(finished / "data"))
    trainer = trl.SFTTrainer(pipe.transformer, arguments, train_dataset=data, processing_class=pipe.tokenizer)
    assert np.isfinite(trainer.train().training_loss)


def test_the_image_head_of_a_chameleon_is_zeroed(saved_folder):
    pipe = LuminaMGPTPipeline.from_pretrained(saved_folder)
    codes = pipe.image_vocabulary.code_ids
    pipe.transformer.config.mask_image_logits = True
    zero_image_head(pipe)
    assert not pipe.transformer.config.mask_image_logits
    rows = pipe.transformer.lm_head.weight.abs().sum(dim=1)
    assert not rows[codes].any()
    others = torch.ones(len(rows), dtype=torch.bool)
    others[codes] = False
    assert rows[others].all()


def recipe(tmp_path, text: str) -> list[str]:
    (tmp_path / "recipe.yaml").write_text(text)
    return ["--config", str(tmp_path / "recipe.yaml")]


def test_a_recipe_holds_flags_and_the_command_line_wins(tmp_path):
    argv = recipe(
        tmp_path,
        """
pretrained_model_name_or_path: base
output_dir: out
learning_rate: 1e-3
packing: true
report_to: [tensorboard, wandb]
trainer_arguments: {ddp_timeout: 10}
stages:
- {resolution: 96, train_data_dir: a, max_train_steps: 10}
- {resolution: 128, data: {x: 1, y: 2.5}, learning_rate: 1e-4}
""",
    )
    stages, _ = parse_arguments(FineTuningArguments, [*argv, "--seed", "3", "--resolution=160"], lists=["stages"])
    assert [stage.learning_rate for stage in stages] == [1e-3, 1e-4]
    assert [stage.resolution for stage in stages] == [160, 160]
    assert stages[0].train_data_dir == "a" and stages[1].data == ["x=1", "y=2.5"]
    assert all(stage.seed == 3 and stage.packing and stage.report_to == ["tensorboard", "wandb"] for stage in stages)
    assert stages[0].trainer_arguments == '{"ddp_timeout": 10}'


@pytest.mark.parametrize(
    "text, message",
    [
        ("learnin_rate: 1", "`learnin_rate` in .* is no flag. Did you mean `learning_rate`?"),
        ("output_dir: a", "`pretrained_model_name_or_path` has to be given"),
        ("pretrained_model_name_or_path: a", "`output_dir` has to be given"),
        ("pretrained_model_name_or_path: a\noutput_dir: b", r"Exactly one of .* there are \[\]"),
        (
            "pretrained_model_name_or_path: a\noutput_dir: b\ntrain_data_dir: c\nmixed_precision: bf8",
            "`mixed_precision` has to be one of .* but is 'bf8'",
        ),
        ("- a", "has to hold names and values"),
    ],
)
def test_recipes_that_are_none_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(FineTuningArguments, recipe(tmp_path, text))


def with_codes(tokenizer: PreTrainedTokenizerFast, number: int) -> PreTrainedTokenizerFast:
    """A tokenizer that names only so many codes."""
    gone = {LUMINA_MGPT.codes.name(code) for code in range(number, 8192)}
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] not in gone]
    values["model"]["vocab"] = {name: id for name, id in values["model"]["vocab"].items() if name not in gone}
    names = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(values)), **names)


def test_a_fresh_model_of_any_codebook_and_base_size_is_trained(random_pipe, tmp_path):
    torch.manual_seed(0)
    vqvae = VQModel(
        block_out_channels=[8, 8, 8, 8, 16],
        down_block_types=["DownEncoderBlock2D"] * 5,
        up_block_types=["UpDecoderBlock2D"] * 5,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=64,
        norm_num_groups=4,
        lookup_from_codebook=True,
        scaling_factor=1.0,
    )
    config = copy.deepcopy(random_pipe.transformer.config)
    config.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1})
    fresh = LuminaMGPTPipeline(
        with_codes(random_pipe.tokenizer, 64),
        LuminaMGPTTransformer(config),
        vqvae,
        LuminaMGPTScheduler(resolution=64),
    )
    fresh.save_pretrained(tmp_path / "fresh")
    photos = make_photos(tmp_path / "photos")
    values = {"max_train_steps": 2, "validation_prompts": ["red fox"], "validation_steps": 2}
    stages = [
        short_run(tmp_path / "fresh", photos, tmp_path / "out", resolution=base_size, packing=True, **values)
        for base_size in (64, 96)
    ]
    pipe = LuminaMGPTPipeline.from_pretrained(fine_tune_progressively(stages))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.resolution == 96 and pipe.transformer.dtype == torch.float32
    codes = pipe("red fox", height=64, width=96, output_type="latent").images
    assert codes.shape == (1, 4, 6) and codes.max() < 64


def test_small_data_are_encoded_where_the_run_is_and_bad_ones_named(saved_folder, tmp_path):
    photos = make_photos(tmp_path / "photos", 4)
    for index in range(4):
        (photos / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"All 4 samples were left out\. metadata\.jsonl:1: .* cannot be opened"):
        fine_tune(short_run(saved_folder, photos, tmp_path / "run"))


def test_data_of_another_size_are_refused(finished, saved_folder, tmp_path):
    values = {"train_data_dir": None, "data": [f"{finished / 'data'}=2"]}
    with pytest.raises(ValueError, match="`resolution` is 64, but `data` was encoded at 96"):
        fine_tune(short_run(saved_folder, None, tmp_path / "run", resolution=64, **values))
    values["data"] = [f"{finished / 'data'}=much"]
    with pytest.raises(ValueError, match="`data` holds .*=much"):
        fine_tune(short_run(saved_folder, None, tmp_path / "run", **values))


def test_no_denormal_numbers_are_left_to_slow_a_run_down(saved_folder, photos, tmp_path, monkeypatch):
    tiny = torch.tensor(1e-20)
    seen = []
    step = Trainer.training_step
    monkeypatch.setattr(
        Trainer, "training_step", lambda *args, **kwargs: (seen.append(float(tiny * tiny)), step(*args, **kwargs))[1]
    )
    assert float(tiny * tiny) > 0
    fine_tune(short_run(saved_folder, photos, tmp_path / "run", max_train_steps=1))
    assert seen == [0.0]
    assert float(tiny * tiny) > 0


def test_muon_trains_the_layers_and_is_resumed_exactly(saved_folder, photos, tmp_path):
    output = tmp_path / "run"
    fine_tune(short_run(saved_folder, photos, output, optim="muon"))
    shutil.copytree(output, tmp_path / "resumed", ignore=shutil.ignore_patterns("pipeline", "checkpoint-4"))
    fine_tune(short_run(saved_folder, photos, tmp_path / "resumed", optim="muon"))
    assert equal(output / "pipeline", tmp_path / "resumed" / "pipeline")


def test_muon_takes_the_linear_layers_and_adamw_the_rest(saved_folder):
    model = LuminaMGPTPipeline.from_pretrained(saved_folder).transformer
    others = copy.deepcopy(model)
    values = {"lr": 1e-3, "weight_decay": 0.1}
    optimizer = MuonWithAdamW(model, betas=(0.9, 0.95), eps=1e-8, **values)
    muon = torch.optim.Muon(
        [one for name, one in others.named_parameters() if name.endswith("_proj.weight")],
        adjust_lr_fn="match_rms_adamw",
        **values,
    )
    adamw = torch.optim.AdamW(
        [one for name, one in others.named_parameters() if not name.endswith("_proj.weight")],
        lr=1e-3,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    for parameters in (model.parameters(), others.parameters()):
        generator = torch.Generator().manual_seed(0)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    for one in (optimizer, muon, adamw):
        one.step()
    for (name, first), second in zip(model.named_parameters(), others.parameters()):
        assert torch.allclose(first, second, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("flag", ["fsdp_config", "deepspeed"])
def test_muon_is_refused_where_matrices_are_spread(tmp_path, flag):
    line = ["--pretrained_model_name_or_path", "pocket", "--output_dir", str(tmp_path), "--data", "somewhere"]
    with pytest.raises(ValueError, match=f"muon.*{flag}"):
        parse_arguments(FineTuningArguments, [*line, "--optim", "muon", f"--{flag}", "settings.json"])


def test_a_run_that_was_killed_after_its_last_step_takes_no_other(saved_folder, photos, tmp_path):
    output = tmp_path / "run"
    values = {"max_train_steps": 1, "checkpointing_steps": 1}  # in the middle of an epoch
    fine_tune(short_run(saved_folder, photos, output, **values))
    shutil.copytree(output, tmp_path / "again", ignore=shutil.ignore_patterns("pipeline"))
    fine_tune(short_run(saved_folder, photos, tmp_path / "again", **values))
    assert equal(output / "pipeline", tmp_path / "again" / "pipeline")
    assert json.loads((tmp_path / "again" / "pipeline" / "training.json").read_text())["steps"] == 1
