# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Speed and memory of training, as ratios to what it is compared with, alternating in one run.

    python benchmarks/training.py objective
    python benchmarks/training.py packing
    python benchmarks/training.py precision
    python benchmarks/training.py pretokenization
    python benchmarks/training.py memory

On a GPU, within nine minutes: model FLOPs utilisation of layers of the 7B shape with the whole vocabulary, images of
768 px per second if all 32 layers were there, and the peak of the memory against its estimate:

    python benchmarks/training.py gpu --layers 8 --samples 4 --minutes 8
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import VQModel
from memory import PeakMemory
from models import PIPELINE_VQ_CONFIG, VOCABULARY, VOCABULARY_SIZE, shape_config
from transformers import AutoTokenizer, ChameleonConfig, Trainer, TrainingArguments

from lumina_mgpt_diffusers import LUMINA_MGPT, LuminaMGPTTransformer
from lumina_mgpt_diffusers.lumina_mgpt.unirep import trained_sizes
from lumina_mgpt_diffusers.training import (
    EncodingSettings,
    ImageFolderSource,
    LuminaMGPTTrainer,
    make_trainable,
    pretokenize,
)
from lumina_mgpt_diffusers.training.data_collator import PackedCollator, PaddedCollator
from lumina_mgpt_diffusers.training.encoding import PreparedSamples, encode_batch
from lumina_mgpt_diffusers.training.memory import estimate_training_memory
from lumina_mgpt_diffusers.training.objective import LOGITS_PER_CHUNK
from lumina_mgpt_diffusers.training.packed_attention import PACKED_SDPA


SMALL_BODY = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENIZER = Path(__file__).parents[1] / "tests" / "fixtures" / "7b_like" / "ckpt"

POCKET = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 6}


def build(
    shape: dict, vocab_size: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LuminaMGPTTransformer:
    small_vq = {"base_channels": 32, "num_res_blocks": 1, "channel_multiplier": [1], "num_embeddings": 8}
    values = {"num_key_value_heads": shape["num_attention_heads"], **shape}
    config = ChameleonConfig(vocab_size=vocab_size, vq_config=small_vq, vocabulary_map={"<image>": 1}, **values)
    torch.manual_seed(0)
    with torch.device(device):
        return LuminaMGPTTransformer(config)


def random_samples(lengths: list[int], vocab_size: int) -> list[dict]:
    rng = np.random.default_rng(0)
    samples = []
    for length in lengths:
        ids = torch.from_numpy(rng.integers(4, vocab_size, length))
        samples.append({"input_ids": ids, "labels": ids.clone().index_fill_(0, torch.arange(30), -100)})
    return samples


def table(head: list[str], rows: list[list[object]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")
    print(flush=True)


def alternate(steps: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median tokens per second of steps that take turns."""
    for step in steps.values():
        step()
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            tokens = step()
            rates[name].append(tokens / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def objective(args: argparse.Namespace) -> None:
    """4 x 1,100 tokens, 65,536-token vocabulary: stock `Trainer` and its loss against ours, each in its process."""
    results: dict[str, list[dict]] = {}
    for _ in range(args.rounds):
        for dtype in ("float32", "bfloat16"):
            for kind in ("stock", "ours"):
                line = [sys.executable, __file__, "one-objective", "--kind", kind, "--dtype", dtype]
                done = subprocess.run(line, capture_output=True, text=True, check=True)
                results.setdefault(f"{kind}, {dtype}", []).append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for name, runs in results.items()
    }
    rows = []
    for name, values in medians.items():
        stock = medians[name.replace("ours", "stock")]
        rows.append(
            [
                name,
                f"{values['tokens_per_second']:.0f}",
                f"{values['tokens_per_second'] / stock['tokens_per_second']:.2f}",
                f"{values['peak'] / 2**30:.2f}",
                f"{values['peak'] / stock['peak']:.2f}",
            ]
        )
    table(["objective", "tokens/s", "ratio", "peak GiB over the start", "ratio"], rows)


def one_objective(args: argparse.Namespace) -> None:
    samples = random_samples([1100] * 4, VOCABULARY_SIZE)
    model = build(SMALL_BODY, VOCABULARY_SIZE)
    if args.kind == "ours":
        make_trainable(model, dropout=0.0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=4,
            max_steps=args.steps,
            bf16=args.dtype == "bfloat16",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            optim="adamw_torch_fused",
        )
        trainer_class = LuminaMGPTTrainer if args.kind == "ours" else Trainer
        trainer = trainer_class(model, arguments, PaddedCollator(1), samples * args.steps)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        runtime = trainer.train().metrics["train_runtime"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(json.dumps({"tokens_per_second": 4400 * args.steps / runtime, "peak": peak}))


def one_step(model: torch.nn.Module, batches: list[dict], dtype: torch.dtype) -> int:
    tokens = 0
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            model(**batch).loss.backward()
        model.zero_grad()
        tokens += int((batch["labels"] != -100).sum())
    return tokens


def packing(args: argparse.Namespace) -> None:
    """A 512-base mix: images of all sizes with captions, of which some come with an input image, and texts."""
    rng = np.random.default_rng(0)
    sizes = trained_sizes(512)
    kinds = {
        "images with captions": lambda image: image + int(rng.integers(30, 120)),
        "all tasks": lambda image: (image + 40, 2 * image + 60, int(rng.integers(50, 600)))[rng.integers(3)],
    }
    rows = []
    for name, length_of in kinds.items():
        lengths = [length_of(VOCABULARY.num_tokens(*sizes[rng.integers(len(sizes))])) for _ in range(args.samples)]
        samples = sorted(random_samples(lengths, 8192), key=lambda one: len(one["input_ids"]))
        groups = [samples[index : index + 4] for index in range(0, len(samples), 4)]
        padded = [PaddedCollator(1)(group) for group in groups]
        masked = [batch | {"attention_mask": (batch["input_ids"] != 1).long()} for batch in padded]
        order = [samples[index] for index in rng.permutation(len(samples))]
        packed = [PackedCollator()([order[index : index + 4]]) for index in range(0, len(order), 4)]
        model = make_trainable(build(POCKET, 8192), dropout=0.0)
        packing_model = make_trainable(build(POCKET, 8192), dropout=0.0)
        packing_model.set_attn_implementation(PACKED_SDPA)
        rates = alternate(
            {
                "padded by length, mask": lambda: one_step(model, masked, torch.float32),
                "padded by length, no mask": lambda: one_step(model, padded, torch.float32),
                "packed, sdpa of transformers": lambda: one_step(model, packed, torch.float32),
                "packed": lambda: one_step(packing_model, packed, torch.float32),
            },
            args.rounds,
        )
        base = rates["padded by length, mask"]
        rows += [[name, kind, f"{rate:.0f}", f"{rate / base:.2f}"] for kind, rate in rates.items()]
    table(["samples", "batches", "learnt tokens/s", "ratio"], rows)


def precision(args: argparse.Namespace) -> None:
    """Tokens per second of small models in float32 and in bfloat16 with float32 master weights."""
    rows = []
    for layers, width in ((4, 128), (8, 192), (8, 256), (12, 384)):
        inner = width * 8 // 3 // 32 * 32
        shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
        model = make_trainable(build({**shape, "num_attention_heads": width // 32}, 2048), dropout=0.05)
        model.set_attn_implementation(PACKED_SDPA)
        samples = random_samples([100] * 32, 2048)
        rates = alternate(
            {
                "float32": lambda: one_step(model, [PackedCollator()([samples])], torch.float32),
                "bfloat16": lambda: one_step(model, [PackedCollator()([samples])], torch.bfloat16),
            },
            args.rounds,
        )
        parameters = sum(weight.numel() for weight in model.parameters()) / 1e6
        rows.append([layers, width, f"{parameters:.1f}M", *(f"{rate:.0f}" for rate in rates.values())])
    table(["layers", "width", "parameters", "tokens/s float32", "tokens/s bfloat16"], rows)


def pretokenization(args: argparse.Namespace) -> None:
    """The command against the VQ model alone, on images of one size that have to be scaled down."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = []
        for index in range(args.samples):
            values = np.random.default_rng(index).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            image = PIL.Image.fromarray(values).resize((args.side * 4 // 3, args.side))
            image.save(folder / f"{index}.jpg", quality=90)
            lines.append(json.dumps({"file_name": f"{index}.jpg", "text": f"picture {index}"}))
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        source = ImageFolderSource(folder)
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        torch.manual_seed(0)
        vqvae = VQModel(**PIPELINE_VQ_CONFIG).eval()
        settings = EncodingSettings(args.base_size)
        models = tokenizer, vqvae, settings
        prepared = PreparedSamples(source, range(args.samples), tokenizer, VOCABULARY, settings, LUMINA_MGPT)
        images = [prepared[index].images[0] for index in range(args.samples)]
        size = 4

        def alone() -> int:
            for first in range(0, len(images), size):
                encode_batch(vqvae, images[first : first + size])
            return len(images)

        runs = iter(range(10**6))

        def command(num_workers: int) -> Callable[[], int]:
            def run() -> int:
                output = folder / f"out-{next(runs)}"
                pretokenize(source, output, *models, batch_size=size, num_workers=num_workers, progress=False)
                return len(images)

            return run

        steps = {"VQ model alone": alone} | {f"{number} workers": command(number) for number in args.workers}
        rates = alternate(steps, args.rounds)
    table(
        ["", "images/s", "ratio"],
        [[name, f"{rate:.3f}", f"{rate / rates['VQ model alone']:.2f}"] for name, rate in rates.items()],
    )


def memory(args: argparse.Namespace) -> None:
    """The estimate for the released models, and how near it is to the peak of a step on the CPU."""
    rows = []
    for shape, method, devices, samples in [
        ("7b", "qlora", 1, 1),
        ("7b", "lora", 1, 1),
        ("7b", "lora", 1, 4),
        ("7b", "full", 8, 4),
        ("7b", "full", 32, 8),
        ("34b", "qlora", 1, 1),
        ("34b", "lora", 8, 4),
        ("34b", "full", 8, 1),
        ("34b", "full", 32, 4),
    ]:
        config = shape_config(shape)
        row = [shape, method, devices, samples]
        for size in (512, 768, 1024):
            tokens = samples * (VOCABULARY.num_tokens(size, size) + 60)
            estimate = estimate_training_memory(config, tokens, method=method, num_devices=devices)
            row.append(f"{estimate.total / 2**30:.1f}")
        rows.append(row)
    table(["model", "method", "GPUs", "samples each", "512 px, GiB", "768 px, GiB", "1024 px, GiB"], rows)

    rows = []
    for checkpointing in (True, False):
        for samples in (1, 4):
            measured, estimate = measured_peak(SMALL_BODY | {"num_hidden_layers": 8}, [1100] * samples, checkpointing)
            rows.append(
                [
                    samples,
                    checkpointing,
                    f"{measured / 2**20:.0f}",
                    f"{estimate / 2**20:.0f}",
                    f"{estimate / measured:.2f}",
                ]
            )
    table(["samples", "checkpointed", "measured MiB", "estimated MiB", "ratio"], rows)


def measured_peak(shape: dict, lengths: list[int], checkpointing: bool, vocab_size: int = 8192) -> tuple[int, int]:
    """Peak bytes of the second training step on the CPU, of two batches in float32, and the estimate."""
    model = make_trainable(build(shape, vocab_size), dropout=0.0).train()
    model.set_attn_implementation(PACKED_SDPA)
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = PackedCollator()([random_samples(lengths, vocab_size)])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    held = [*model.parameters(), *model.buffers(), *batch.values()]
    held = [tensor for tensor in held if isinstance(tensor, torch.Tensor)]
    held += [value for state in optimizer.state.values() for value in state.values()]
    with PeakMemory(held) as peak:
        for _ in range(2):
            model(**batch).loss.backward()
        optimizer.step()
    fixed = sum(tensor.untyped_storage().nbytes() for tensor in held)
    estimate = estimate_training_memory(
        model.config,
        sum(lengths),
        dtype=torch.float32,
        gradient_checkpointing=checkpointing,
        logits_per_chunk=LOGITS_PER_CHUNK["cpu"],
    )
    return peak.peak + fixed, estimate.total


def gpu(args: argparse.Namespace) -> None:
    """Some layers of the 7B shape with the whole vocabulary, bfloat16 with float32 master weights, AdamW."""
    device = "cuda"
    config = shape_config("7b", args.layers)
    shape = {key: getattr(config, key) for key in ("hidden_size", "intermediate_size", "num_attention_heads")}
    model = build({**shape, "num_hidden_layers": args.layers}, VOCABULARY_SIZE, device)
    make_trainable(model, dropout=0.05).train()
    model.set_attn_implementation(PACKED_SDPA)
    if args.checkpointing:
        model.gradient_checkpointing_enable()
    if args.compile:
        for layer in model.model.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    length = VOCABULARY.num_tokens(768, 768) + 60
    samples = random_samples([length] * args.samples, VOCABULARY_SIZE)
    batch = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in PackedCollator()([samples]).items()
    }
    tokens = length * args.samples

    def step() -> int:
        with torch.autocast(device, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 4.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        return tokens

    for _ in range(3):
        step()
    torch.cuda.reset_peak_memory_stats()
    times = []
    deadline = time.perf_counter() + 60 * args.minutes
    while len(times) < 50 and time.perf_counter() < deadline:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    width = config.hidden_size
    of_layer = 4 * width * width + 3 * width * config.intermediate_size
    # 6 per weight and token, and of attention 6 for each of the pairs of tokens of a causal sequence.
    of_layers = 6 * of_layer + 6 * width * length
    of_head = 6 * width * VOCABULARY_SIZE
    flops = tokens * (args.layers * of_layers + of_head)
    whole = tokens / seconds * (args.layers * of_layers + of_head) / (32 * of_layers + of_head)
    estimate = estimate_training_memory(config, tokens, gradient_checkpointing=args.checkpointing).total
    table(
        ["GPU", "layers", "tokens/s", "MFU", "images/s of 768 px with 32 layers", "peak GiB", "estimated GiB"],
        [
            [
                torch.cuda.get_device_name(),
                args.layers,
                f"{tokens / seconds:.0f}",
                f"{flops / seconds / (args.peak_tflops * 1e12):.1%}",
                f"{whole / length:.2f}",
                f"{torch.cuda.max_memory_allocated() / 2**30:.1f}",
                f"{estimate / 2**30:.1f}",
            ]
        ],
    )


def main() -> None:
    commands = {
        "objective": objective,
        "one-objective": one_objective,
        "packing": packing,
        "precision": precision,
        "pretokenization": pretokenization,
        "memory": memory,
        "gpu": gpu,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--kind", default="ours")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--side", type=int, default=600, help="Height of the images to encode.")
    parser.add_argument("--base_size", type=int, default=256)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--peak_tflops", type=float, default=989, help="Dense bfloat16 of the GPU, here of an H100.")
    args = parser.parse_args()
    commands[args.command](args)


if __name__ == "__main__":
    main()
