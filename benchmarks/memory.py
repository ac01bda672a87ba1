# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What `estimate_memory` says of the released models, and how near it is to the peak of a real call.

    python benchmarks/memory.py
    python benchmarks/memory.py --measure --shape 340m --size 256 --num_images 1 2 4
    python benchmarks/memory.py --measure --shape 7b --size 768 --num_images 1 4 --device cuda
"""

from __future__ import annotations

import argparse
import weakref
from dataclasses import astuple, fields

import torch
from diffusers import VQModel
from models import SHAPES, build_transformer, language_of, shape_config, vocabulary_names
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTScheduler
from lumina_mgpt_diffusers.memory import MemoryEstimate, estimate_memory, largest_batch


GIB = 2**30


class PeakMemory(TorchDispatchMode):
    """Peak bytes of the tensors that are alive, where there is no allocator to ask: on the CPU."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        # Operations return views of weights as well, which take nothing.
        self.live = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = self.peak = 0

    def _free(self, key: int, size: int) -> None:
        self.live.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.live:
                    self.live.add(key)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, key, size)
        return result


def print_estimates(prompt_length: int) -> None:
    parts = [field.name.replace("_", " ") for field in fields(MemoryEstimate)]
    print("| model | size | images | dtype | " + " | ".join(parts) + " | total GiB |")
    print("|---" * (len(parts) + 5) + "|")
    for shape in ("7b", "34b", "2.0"):
        for size in (512, 768, 1024):
            for number in (1, 4, 16):
                for name, bits in (("bfloat16", None), ("int8 weights", 8)):
                    estimate = estimate_memory(
                        shape_config(shape), size, size, number, weight_bits=bits, prompt_length=prompt_length
                    )
                    sizes = (*astuple(estimate), estimate.total)
                    columns = " | ".join(f"{part / GIB:.1f}" for part in sizes)
                    print(f"| {shape} | {size} | {number} | {name} | {columns} |")
    print("\n| model | size | dtype | 24 GB | 48 GB | 80 GB |")
    print("|---|---|---|---|---|---|")
    for shape in ("7b", "34b", "2.0"):
        for size in (512, 768, 1024):
            for name, bits in (("bfloat16", None), ("int8 weights", 8)):
                # One gigabyte for the CUDA context and what the allocator holds back.
                batches = [
                    largest_batch((card - 1) * 10**9, shape_config(shape), size, size, weight_bits=bits)
                    for card in (24, 48, 80)
                ]
                print(f"| {shape} | {size} | {name} | " + " | ".join(map(str, batches)) + " |")


def measure(
    shape: str,
    size: int,
    num_images: int,
    device: torch.device,
    dtype: torch.dtype,
    num_layers: int | None = None,
    is_short: bool = False,
) -> tuple[int, int]:
    """Estimated and measured peak bytes of a call; of a short one all but the last row of codes is given."""
    language = language_of(shape)
    transformer = build_transformer(shape, device, dtype, num_layers=num_layers)
    vqvae = VQModel(**language.vq_config).to(device, dtype).eval()
    # Without a tokenizer the pipeline takes the names of the image tokens from the config.
    transformer.config.vocabulary_map = vocabulary_names(language.vocabulary, language)
    pipe = LuminaMGPTPipeline(None, transformer, vqvae, LuminaMGPTScheduler(resolution=size))
    pipe.set_progress_bar_config(disable=True)
    parameters = [parameter for module in (transformer, vqvae) for parameter in module.parameters()]
    weights = sum(parameter.nbytes for parameter in parameters)
    call = {
        "prompt_token_ids": torch.arange(9000, 9064)[None],
        "num_images_per_prompt": num_images,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "pt",
    }
    if is_short:
        side = size // language.vocabulary.patch_size
        call["latents"] = torch.zeros(num_images, side, side, dtype=torch.long)
        call["latents"][:, -1] = -1
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        pipe(**call)
        peak = torch.cuda.max_memory_allocated()
    else:
        with PeakMemory(parameters) as memory:
            pipe(**call)
        peak = weights + memory.peak
    estimate = estimate_memory(transformer.config, size, size, num_images, dtype=dtype)
    return estimate.total, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="run calls and compare")
    parser.add_argument("--shape", choices=SHAPES, default="340m")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--num_images", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompt_length", type=int, default=64)
    parser.add_argument("--num_layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--short", action="store_true", help="sample only the last row of codes")
    args = parser.parse_args()
    if not args.measure:
        print_estimates(args.prompt_length)
        return
    for number in args.num_images:
        estimated, peak = measure(
            args.shape,
            args.size,
            number,
            torch.device(args.device),
            getattr(torch, args.dtype),
            args.num_layers,
            args.short,
        )
        print(
            f"{args.shape} {args.dtype} {args.size} px, {number} image(s): estimated {estimated / GIB:.2f} GiB,"
            f" measured {peak / GIB:.2f} GiB, ratio {estimated / peak:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
