# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Train the VQ model of the pocket model, a `diffusers.VQModel` of the released structure (stride 16) but small.

    python examples/pocket/train_vq.py --output pocket_vq

Pictures are rendered as they are needed, a batch from its number alone, so that a run that was stopped goes on from
its last checkpoint as if it had not been. First the autoencoder alone is trained; then k-means over its latents makes
the codebook, which from there on follows the latents as moving averages, while codes that nothing uses start again at
a latent of the batch. After `--free_steps`, when pictures begin where codes do, k-means makes it once more.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import VQModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from diffusers.optimization import get_cosine_schedule_with_warmup
from maps import boxes_picture, depth_picture, normals_picture, segmentation_picture
from world import LATTICE, Scene, draw_scene, measure, render


KINDS = ("picture", "depth", "normals", "segmentation", "boxes")
SIDES = (96, 128, 160, 192)

CHECKPOINT_PREFIX = "checkpoint_"  # accelerate's
COMPLETE = "complete"


def build_vq(num_codes: int, widths: tuple[int, ...]) -> VQModel:
    vqvae = VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=64,
        vq_embed_dim=16,
        num_vq_embeddings=num_codes,
        norm_num_groups=4,
        mid_block_add_attention=True,
        lookup_from_codebook=True,
        scaling_factor=1.0,
    )
    start_near_identity(vqvae)
    return vqvae


@torch.no_grad()
def start_near_identity(vqvae: VQModel) -> None:
    """
    Have every block pass on what it is given, so that averages over pixels reach the output from the first step on and
    only the details are left to learn.
    """
    for module in vqvae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                nn.init.orthogonal_(module.conv_shortcut.weight)
        elif isinstance(module, (Downsample2D, Upsample2D)):
            weight = module.conv.weight.mul_(0.1)
            own = weight.diagonal(dim1=0, dim2=1)  # (3, 3, channels)
            if isinstance(module, Downsample2D):
                own[:2, :2] += 0.25
            else:
                own[1, 1] += 1


def picture_of(scene: Scene, kind: str) -> np.ndarray:
    """The picture of a scene, or one of its maps, `(height, width, 3)`, uint8."""
    if kind == "picture":
        return render(scene)
    if kind == "boxes":
        return boxes_picture(scene, scene.things[:2])
    maps = measure(scene)
    if kind == "segmentation":
        return segmentation_picture(scene, maps)
    return depth_picture(maps) if kind == "depth" else normals_picture(maps)


def draw_batch(seed: int, step: int, batch_size: int, crop: int, lattice: int) -> torch.Tensor:
    """
    Pictures in [-1, 1], `(batch_size, 3, crop, crop)`. Those of a larger scene are cropped near an object, at columns
    and rows that are multiples of `lattice`.
    """
    random = np.random.default_rng([seed, step])
    pictures = []
    for place in range(batch_size):
        index = 10_000_000 + step * batch_size + place
        side = max(int(random.choice(SIDES)), crop)
        kind = KINDS[random.choice(len(KINDS), p=[0.72, 0.08, 0.08, 0.07, 0.05])]
        scene = draw_scene("train", index, side, side)
        pixels = picture_of(scene, kind)
        if side > crop:
            x, y = scene.things[random.integers(len(scene.things))].middle
            offsets = (np.clip(middle - crop * random.uniform(0.1, 0.9), 0, side - crop) for middle in (x, y))
            left, top = (round(offset / lattice) * lattice for offset in offsets)
            pixels = pixels[top : top + crop, left : left + crop]
        pictures.append(pixels)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_step(args: argparse.Namespace, step: int) -> torch.Tensor:
    """The pictures of a step: crops, or now and then whole scenes."""
    lattice = 1 if step < args.free_steps else LATTICE
    if step % args.whole_every == 0:
        return draw_batch(args.seed, step, max(args.train_batch_size // 2, 1), 96, lattice)
    return draw_batch(args.seed, step, args.train_batch_size, args.crop, lattice)


def flatten(latents: torch.Tensor) -> torch.Tensor:
    """`(batch, channels, rows, columns)` to `(batch * rows * columns, channels)`."""
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


@torch.no_grad()
def collect_latents(
    vqvae: VQModel, args: argparse.Namespace, step: int, device: torch.device, num_batches: int = 150
) -> torch.Tensor:
    """What the encoder makes of the pictures of the steps to come."""
    steps = range(step, step + num_batches)
    return torch.cat([flatten(vqvae.encode(draw_step(args, one).to(device)).latents.float()) for one in steps])


class MovingCodebook:
    """The codebook as moving averages of the latents that chose each code."""

    def __init__(self, codebook: torch.nn.Parameter, decay: float = 0.98) -> None:
        self.codebook = codebook.requires_grad_(False)
        self.decay = decay
        self.ready = False
        self.counts = torch.ones(len(codebook))
        self.sums = codebook.detach().clone()

    def state_dict(self) -> dict:
        return {"ready": self.ready, "counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict) -> None:
        self.ready, self.counts, self.sums = state["ready"], state["counts"], state["sums"]

    def start(self, latents: torch.Tensor, rounds: int = 15) -> None:
        """k-means over latents `(n, channels)`."""
        num_codes = len(self.codebook)
        centres = latents[torch.randperm(len(latents))[:num_codes]].clone()
        for _ in range(rounds):
            chosen = torch.cdist(latents, centres).argmin(dim=1)
            counts = chosen.bincount(minlength=num_codes)
            sums = torch.zeros_like(centres).index_add_(0, chosen, latents)
            spare = latents[torch.randint(len(latents), (num_codes,))]
            centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), spare)
        self.codebook.copy_(centres)
        self.counts = torch.ones(num_codes)
        self.sums = centres.clone()
        self.ready = True

    def update(self, latents: torch.Tensor, chosen: torch.Tensor) -> None:
        counts = chosen.bincount(minlength=len(self.codebook)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, latents)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        unused = self.counts < 0.01
        if unused.any():
            fresh = latents[torch.randint(len(latents), (int(unused.sum()),))]
            self.sums[unused] = fresh * 0.1
            self.counts[unused] = 0.1
        self.codebook.copy_(self.sums / self.counts[:, None])


def edges(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image[..., 1:, :] - image[..., :-1, :], image[..., :, 1:] - image[..., :, :-1]


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    sharpness = sum(F.l1_loss(a, b) for a, b in zip(edges(output), edges(target)))
    return F.l1_loss(output, target) + 2 * F.mse_loss(output, target) + 0.7 * sharpness


@torch.no_grad()
def round_trip(vqvae: VQModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded images and their codes, from images in [-1, 1]."""
    latents = vqvae.encode(images).latents
    codes = vqvae.quantize(latents)[2][2]
    shape = (len(images), latents.shape[2], latents.shape[3], latents.shape[1])
    return vqvae.decode(codes, force_not_quantize=True, shape=shape).sample.clamp(-1, 1), codes


@torch.no_grad()
def evaluate(vqvae: VQModel, num_images: int) -> dict[str, float]:
    """PSNR in dB on scenes that training never shows, by kind and size, and how the codebook is used."""
    vqvae.eval()
    figures, used = {}, []
    cases = [("picture", side, split) for side in SIDES for split in ("test", "held_out")]
    cases += [(kind, 128, "test") for kind in KINDS[1:]]
    for kind, side, split in cases:
        pixels = np.stack([picture_of(draw_scene(split, index, side, side), kind) for index in range(num_images)])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        errors = []
        for batch in images.split(8):
            decoded, codes = round_trip(vqvae, batch)
            errors += ((decoded - batch) / 2).square().mean(dim=(1, 2, 3)).tolist()
            used.append(codes.flatten())
        figures[f"psnr_{kind}_{side}_{split}"] = round(float(np.mean(-10 * np.log10(np.array(errors) + 1e-9))), 2)
    counts = torch.cat(used).bincount(minlength=vqvae.config.num_vq_embeddings).float()
    shares = counts[counts > 0] / counts.sum()
    figures["codes_used"] = round(float((counts > 0).float().mean()), 4)
    figures["perplexity"] = round(float((-(shares * shares.log()).sum()).exp()), 1)
    vqvae.train()
    return figures


def newest_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint that was written to its end. Any that was not is removed."""
    found = {}
    for path in (output / "checkpoints").glob(f"{CHECKPOINT_PREFIX}*"):
        if (path / COMPLETE).exists():
            found[int(path.name.removeprefix(CHECKPOINT_PREFIX))] = path
        else:
            shutil.rmtree(path)
    return found[max(found)] if found else None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the VQ model, its log and checkpoints")
    parser.add_argument("--num_codes", type=int, default=1024)
    parser.add_argument("--widths", type=int, nargs="+", default=(16, 32, 48, 64, 80), help="of 5 levels: stride 16")
    parser.add_argument("--max_train_steps", type=int, default=16_500)
    parser.add_argument("--plain_steps", type=int, default=1500, help="steps before there is a codebook")
    parser.add_argument(
        "--free_steps",
        type=int,
        default=11_500,
        help="steps with crops from anywhere, before they begin where codes do",
    )
    parser.add_argument("--crop", type=int, default=64, help="side of the training pictures, a multiple of 16")
    parser.add_argument("--whole_every", type=int, default=4, help="steps from one batch of whole scenes to the next")
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--commitment", type=float, default=0.25)
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="bf16")
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--validation_steps", type=int, default=1000)
    parser.add_argument("--num_validation_images", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=args.mixed_precision,
        project_config=ProjectConfiguration(str(args.output), automatic_checkpoint_naming=True, total_limit=3),
    )
    args.output.mkdir(parents=True, exist_ok=True)
    set_seed(args.seed)
    vqvae = build_vq(args.num_codes, tuple(args.widths))
    codebook = MovingCodebook(vqvae.quantize.embedding.weight)
    parameters = [parameter for parameter in vqvae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 200, args.max_train_steps)
    vqvae, optimizer, schedule = accelerator.prepare(vqvae, optimizer, schedule)
    accelerator.register_for_checkpointing(codebook)
    accelerator.print(f"{sum(p.numel() for p in vqvae.parameters()) / 1e6:.2f}M parameters")

    step = 0
    checkpoint = newest_checkpoint(args.output)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        number = int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX)) + 1
        accelerator.project_configuration.iteration = number
        step = number * args.checkpointing_steps
        accelerator.print(f"going on from step {step}")

    began, losses = time.perf_counter(), []
    while step < args.max_train_steps:
        if step in (args.plain_steps, args.free_steps):
            codebook.start(collect_latents(vqvae, args, step, accelerator.device))
        images = draw_step(args, step).to(accelerator.device)
        with accelerator.autocast():
            latents = vqvae.encode(images).latents.float()
        quantized, commitment = latents, torch.zeros(())
        if codebook.ready:
            flat = flatten(latents.detach())
            chosen = torch.cdist(flat, codebook.codebook).argmin(dim=1)
            nearest = codebook.codebook[chosen].view(latents.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            commitment = F.mse_loss(latents, nearest)
            quantized = latents + (nearest - latents).detach()
            codebook.update(flat, chosen)
        with accelerator.autocast():
            output = vqvae.decoder(vqvae.post_quant_conv(quantized)).float()
        loss = reconstruction_loss(output, images)
        accelerator.backward(loss + args.commitment * commitment)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        step += 1

        if step % 100 == 0:
            speed = 100 / (time.perf_counter() - began)
            psnr = -10 * math.log10(float(F.mse_loss(output.detach(), images)) / 4)
            accelerator.print(
                f"step {step} loss {np.mean(losses):.4f} commitment {float(commitment):.4f} last batch {psnr:.2f} dB"
                f" {speed:.2f} steps/s",
                flush=True,
            )
            began, losses = time.perf_counter(), []
        if step % args.validation_steps == 0 or step == args.max_train_steps:
            figures = {"step": step, **evaluate(accelerator.unwrap_model(vqvae), args.num_validation_images)}
            with (args.output / "figures.jsonl").open("a") as file:
                file.write(json.dumps(figures) + "\n")
            accelerator.print(figures, flush=True)
            accelerator.unwrap_model(vqvae).save_pretrained(args.output / "vqvae")
        if step % args.checkpointing_steps == 0:
            (Path(accelerator.save_state()) / COMPLETE).touch()
    accelerator.end_training()


if __name__ == "__main__":
    main()
