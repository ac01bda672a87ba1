# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Trains a small transformer on codes of real photographs, in minutes on one CPU core. How many drafts are right cannot
be measured on random weights, and the released ones are too large for hundreds of runs.

    pip install --no-deps --target photos scikit-learn scikit-image matplotlib
    python benchmarks/small_model.py --photos photos --output small_model

Photographs that these packages bundle are cropped, zoomed, mirrored and brightened at random into 96 x 96 px; a
codebook made by k-means over 4 x 4 px patches turns them into 24 x 24 codes; the transformer learns them in the
project's layout, `context [start, height tag, width tag] row, row end, …`. The context says which photo a crop is from
and how much was zoomed; in 10% of the crops it is left out, as classifier-free guidance needs. All follows from
`--seed`. A run that ends early, by `--minutes` or otherwise, goes on from its last checkpoint when started again.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import ChameleonConfig

from lumina_mgpt_diffusers import LuminaMGPTTransformer
from lumina_mgpt_diffusers.lumina_mgpt.unirep import ImageVocabulary


PHOTOS = (
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    *(
        f"skimage/data/{name}"
        for name in (
            "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
            "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "rocket.jpg",
        )
    ),
)  # fmt: skip

NUM_CODES = 512
PATCH = 4  # pixels of a crop per code
SIDE = 24  # codes
ZOOMS = 4
DROPPED = 0.1

_ROW_END = NUM_CODES
VOCABULARY = ImageVocabulary(
    code_ids=torch.arange(NUM_CODES),
    row_end_id=_ROW_END,
    start_id=_ROW_END + 1,
    end_id=_ROW_END + 2,
    separator_id=_ROW_END + 3,
    size_tag_ids=tuple(range(_ROW_END + 4, _ROW_END + 20)),
    patch_size=16,
)
_FIRST_PHOTO_ID = _ROW_END + 20
_FIRST_ZOOM_ID = _FIRST_PHOTO_ID + len(PHOTOS)
VOCABULARY_SIZE = -(-(_FIRST_ZOOM_ID + ZOOMS) // 64) * 64


def context_ids(photo: int, zoom: int) -> list[int]:
    """Token ids before an image of a photo at a zoom from 0, a small part of it, to `ZOOMS - 1`, the whole."""
    return [_FIRST_PHOTO_ID + photo, _FIRST_ZOOM_ID + zoom, VOCABULARY.separator_id]


def build_transformer(seed: int = 0) -> LuminaMGPTTransformer:
    config = ChameleonConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocabulary_map={},
        vq_config={"base_channels": 32, "num_res_blocks": 1, "channel_multiplier": [1], "num_embeddings": 8},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LuminaMGPTTransformer(config)


def load_small_model(folder: Path) -> tuple[LuminaMGPTTransformer, torch.Tensor]:
    """The trained transformer and the codebook, `(NUM_CODES, PATCH * PATCH * 3)`, values from 0 to 1."""
    state = torch.load(folder / "checkpoint.pt", map_location="cpu")
    transformer = build_transformer()
    transformer.load_state_dict(state["transformer"])
    return transformer.eval().requires_grad_(False), state["codebook"]


# Photographs as codes


def load_photos(folder: Path) -> list[Image.Image]:
    missing = [name for name in PHOTOS if not (folder / name).is_file()]
    if missing:
        raise SystemExit(f"{folder} lacks {missing[0]} and {len(missing) - 1} more. See the head of this script.")
    return [Image.open(folder / name).convert("RGB") for name in PHOTOS]


def draw_crop(photos: list[Image.Image], random: np.random.Generator) -> tuple[np.ndarray, int, int]:
    """A random crop `(96, 96, 3)` with values from 0 to 1, the index of its photo, and its zoom."""
    side = PATCH * SIDE
    index = int(random.integers(len(photos)))
    photo = photos[index]
    log_zoom = random.random()
    size = int(round(side * (min(photo.size) / side) ** log_zoom))
    left, top = (int(random.integers(length - size + 1)) for length in photo.size)
    crop = photo.resize((side, side), Image.Resampling.LANCZOS, (left, top, left + size, top + size), reducing_gap=3)
    if random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(crop, dtype=np.float32) / 255 * random.uniform(0.8, 1.2)
    return pixels.clip(0, 1), index, min(int(log_zoom * ZOOMS), ZOOMS - 1)


def to_patches(pixels: torch.Tensor) -> torch.Tensor:
    """`(batch, 96, 96, 3)` to `(batch, rows, columns, PATCH * PATCH * 3)`."""
    patches = pixels.unflatten(2, (SIDE, PATCH)).unflatten(1, (SIDE, PATCH))
    return patches.transpose(2, 3).flatten(3)


def to_codes(pixels: torch.Tensor, codebook: torch.Tensor) -> torch.LongTensor:
    patches = to_patches(pixels)
    return nearest(patches.flatten(0, 2), codebook).view(patches.shape[:3])


def to_pixels(codes: torch.LongTensor, codebook: torch.Tensor) -> torch.Tensor:
    patches = codebook[codes].unflatten(3, (PATCH, PATCH, 3))  # (batch, rows, columns, PATCH, PATCH, 3)
    return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def nearest(patches: torch.Tensor, codebook: torch.Tensor) -> torch.LongTensor:
    scores = patches @ codebook.T - codebook.square().sum(dim=1) / 2
    return scores.argmax(dim=1)


def learn_codebook(photos: list[Image.Image], seed: int, num_crops: int = 200, num_rounds: int = 40) -> torch.Tensor:
    """k-means over the patches of random crops."""
    random = np.random.default_rng([seed, 0])
    crops = torch.from_numpy(np.stack([draw_crop(photos, random)[0] for _ in range(num_crops)]))
    patches = to_patches(crops).flatten(0, 2)
    generator = torch.Generator().manual_seed(seed)
    codebook = patches[torch.randperm(len(patches), generator=generator)[:NUM_CODES]].clone()
    for _ in range(num_rounds):
        labels = nearest(patches, codebook)
        counts = labels.bincount(minlength=NUM_CODES)
        sums = torch.zeros_like(codebook).index_add_(0, labels, patches)
        # A centre without patches starts again at one of them.
        spare = patches[torch.randint(len(patches), (NUM_CODES,), generator=generator)]
        codebook = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), spare)
    return codebook


def draw_batch(
    photos: list[Image.Image], codebook: torch.Tensor, batch_size: int, random: np.random.Generator
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Token ids and labels, `(batch_size, length)`, the labels -100 where nothing is to be learnt."""
    crops, photo_indices, zooms = zip(*(draw_crop(photos, random) for _ in range(batch_size)))
    codes = to_codes(torch.from_numpy(np.stack(crops)), codebook)
    sequences = []
    for one, photo, zoom in zip(codes, photo_indices, zooms):
        context = [] if random.random() < DROPPED else context_ids(photo, zoom)
        sequences.append(torch.cat([torch.tensor(context, dtype=torch.long), VOCABULARY.to_tokens(one)]))
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=VOCABULARY.end_id)
    return ids, ids.where(ids < NUM_CODES, -100)


# Training


def code_loss(transformer: LuminaMGPTTransformer, ids: torch.LongTensor, labels: torch.LongTensor) -> torch.Tensor:
    """Mean cross-entropy of a code among the codes, in nats."""
    # Matrix products in bfloat16 are several times faster on CPUs made for it and no slower on others.
    with torch.autocast("cpu", torch.bfloat16):
        logits = transformer(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits[..., :NUM_CODES].float().flatten(0, 1), labels[:, 1:].flatten())


def measure_unigram_entropy(labels: torch.LongTensor) -> float:
    counts = labels[labels >= 0].bincount(minlength=NUM_CODES).double()
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * frequencies.log()).sum())


@torch.no_grad()
def evaluate(transformer: LuminaMGPTTransformer, batches: list[tuple[torch.LongTensor, torch.LongTensor]]) -> float:
    return sum(float(code_loss(transformer, ids, labels)) for ids, labels in batches) / len(batches)


def save_atomically(state: dict, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "checkpoint.pt"
    photos = load_photos(args.photos)
    transformer = build_transformer(args.seed)
    optimizer = torch.optim.AdamW(
        transformer.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.05
    )
    step, seconds = 0, 0.0
    if path.exists():
        state = torch.load(path)
        transformer.load_state_dict(state["transformer"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, codebook = state["step"], state["seconds"], state["codebook"]
        print(f"going on from step {step}")
    else:
        codebook = learn_codebook(photos, args.seed)

    # Crops of their own random numbers: the same photos, but none that the training sees.
    random = np.random.default_rng([args.seed, 1])
    held_out = [draw_batch(photos, codebook, 16, random) for _ in range(8)]
    entropy = measure_unigram_entropy(torch.cat([labels.flatten() for _, labels in held_out]))
    print(f"{sum(p.numel() for p in transformer.parameters()) / 1e6:.1f}M parameters")
    print(f"unigram entropy of held-out crops {entropy:.3f} nats, uniform {math.log(NUM_CODES):.3f}")

    def save() -> None:
        state = {"transformer": transformer.state_dict(), "optimizer": optimizer.state_dict(), "codebook": codebook}
        save_atomically(state | {"step": step, "seconds": seconds}, path)

    start = last_save = time.perf_counter()
    transformer.train()
    while step < args.steps and time.perf_counter() - start < 60 * args.minutes:
        began = time.perf_counter()
        progress = step / args.steps
        rate = min((step + 1) / 50, 0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * rate
        ids, labels = draw_batch(photos, codebook, args.batch_size, np.random.default_rng([args.seed, 2, step]))
        loss = code_loss(transformer, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        seconds += time.perf_counter() - began
        if step % 25 == 0:
            print(f"step {step:5}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
        if time.perf_counter() - last_save > 60:
            save()
            last_save = time.perf_counter()
    save()
    transformer.eval()
    loss = evaluate(transformer, held_out)
    print(f"step {step}: held-out loss {loss:.3f} nats, unigram entropy {entropy:.3f}, {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder into which the packages were installed")
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these, to go on another time")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
