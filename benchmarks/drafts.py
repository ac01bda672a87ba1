# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Forwards per code by how codes are guessed first, on the model that `small_model.py` trains.

    python benchmarks/drafts.py --model small_model
    python benchmarks/drafts.py --model small_model --rules above left paeth unigram bigram --num_drafts 15
    python benchmarks/drafts.py --model small_model --agreement
    python benchmarks/drafts.py --cost

Beside the scheduler's own values of `draft_init` it knows rules that were tried and are not part of the project:
guesses from the codes around a place without its noise (`left`, `majority`, `paeth`, `above-left`, `above-right`,
`pairs`), with it (`unigram`, `bigram`) from how often codes were seen in the image so far, and other weights of the
logits above against those beside (`logits-…`). Every run is checked to give the codes of plain autoregression.
All rules sample the same images, so those after the first are compared with the first image by image.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from small_model import PHOTOS, SIDE, VOCABULARY, ZOOMS, context_ids, load_small_model, to_pixels

from lumina_mgpt_diffusers import LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt.batch import Batch
from lumina_mgpt_diffusers.lumina_mgpt.drafts import Drafts, NeighborLogits, Window
from lumina_mgpt_diffusers.lumina_mgpt.engine import Engine
from lumina_mgpt_diffusers.lumina_mgpt.noise import draw_key, gumbel_noise
from lumina_mgpt_diffusers.lumina_mgpt.request import Grammar, Request
from lumina_mgpt_diffusers.lumina_mgpt.row import Row
from lumina_mgpt_diffusers.lumina_mgpt.scheduling_lumina_mgpt import DRAFT_INITS, SamplingPlaces


NUM_CODES = VOCABULARY.num_codes


class Codes:
    """The codes known so far of a batch, to be looked at from a place of each image, `(batch_size, 1)`."""

    def __init__(self, sample: torch.LongTensor, place: torch.LongTensor, stride: int) -> None:
        self.sample = sample
        self.place = place
        self.stride = stride

    def at(self, back: int) -> torch.LongTensor:
        """The code so many places back; -1 where there is none."""
        place = self.place - back
        codes = self.sample.gather(1, place.clamp(0, self.sample.shape[1] - 1))
        return codes.where((place >= 0) & (codes < NUM_CODES), -1)

    @property
    def left(self) -> torch.LongTensor:
        return self.at(1)

    @property
    def above(self) -> torch.LongTensor:
        return self.at(self.stride)

    @property
    def above_left(self) -> torch.LongTensor:
        return self.at(self.stride + 1)

    @property
    def above_right(self) -> torch.LongTensor:
        return self.at(self.stride - 1)

    def counts(self, *backs: int) -> torch.Tensor:
        """How often each code `(batch_size, NUM_CODES)` was seen where those so many places back were as here."""
        index = torch.arange(self.sample.shape[1])
        is_counted = (index < self.place) & (self.sample >= 0) & (self.sample < NUM_CODES)
        for back in backs:
            shifted = torch.nn.functional.pad(self.sample, (back, 0), value=-1)[:, : len(index)]
            is_counted &= shifted == self.at(back)
        counts = torch.zeros(len(self.sample), NUM_CODES + 1)
        codes = self.sample.clamp(min=0).where(is_counted, NUM_CODES)
        return counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=torch.float))[:, :NUM_CODES]


def first_known(*candidates: torch.LongTensor) -> torch.LongTensor:
    guess = candidates[0]
    for candidate in candidates[1:]:
        guess = guess.where(guess >= 0, candidate)
    return guess


def majority(codes: Codes) -> torch.LongTensor:
    """What two of left, above and above left agree on, else the code above."""
    agree = (codes.left == codes.above_left) & (codes.left >= 0)
    return first_known(codes.left.where(agree, codes.above), codes.left)


def paeth(codes: Codes) -> torch.LongTensor:
    """Left where the row above does not change here, else above."""
    agree = (codes.above == codes.above_left) & (codes.above >= 0)
    return first_known(codes.left.where(agree, codes.above), codes.above, codes.left)


def pairs(codes: Codes) -> torch.LongTensor:
    """The code seen most often beside and below this pair of codes, else the code above."""
    counts = codes.counts(1, codes.stride)
    most = counts.argmax(dim=1, keepdim=True)
    return first_known(most.where(counts.amax(dim=1, keepdim=True) > 0, -1), codes.above)


def unigram(codes: Codes) -> torch.Tensor:
    return (codes.counts() + 0.1).log()


def bigram(codes: Codes) -> torch.Tensor:
    counts = codes.counts() + 0.1
    frequencies = counts / counts.sum(dim=1, keepdim=True)
    return (codes.counts(1) + codes.counts(codes.stride) + 4 * frequencies).log()


# Rules that give codes, and those that give logits for the noise to choose from.
CODE_RULES: dict[str, Callable[[Codes], torch.LongTensor]] = {
    "left": lambda codes: first_known(codes.left, codes.above),
    "above-left": lambda codes: first_known(codes.above_left, codes.above),
    "above-right": lambda codes: first_known(codes.above_right, codes.above),
    "majority": majority,
    "paeth": paeth,
    "pairs": pairs,
}
LOGIT_RULES: dict[str, Callable[[Codes], torch.Tensor]] = {"unigram": unigram, "bigram": bigram}
# How much the logits above weigh against those beside.
WEIGHTS = {"logits-beside": 0.0, "logits-25": 0.25, "logits-75": 0.75, "logits-above": 1.0}
RULES = [*DRAFT_INITS, *CODE_RULES, *LOGIT_RULES, *WEIGHTS]


def guess_in_order(name: str, window: Window, image: torch.LongTensor, num_columns: int) -> torch.LongTensor:
    """
    Guess place after place by one of the rules above.

    Args:
        name (`str`): The rule.
        window ([`Window`]): The places.
        image (`torch.LongTensor` of shape `(batch_size, num_places)`): Codes by place, -1 where there is none.
        num_columns (`int`): Codes of a row.

    Returns:
        `torch.LongTensor` of shape `(batch_size, number)`: Codes, -1 for no guess.
    """
    num_places = image.shape[1]
    # A place to spare, for those past the end.
    image = torch.nn.functional.pad(image, (0, 1), value=NUM_CODES)
    places = window.place.clamp(max=num_places)
    for index, place in enumerate(places.split(1, dim=1)):
        codes = Codes(image, place, num_columns + 1)
        if name in CODE_RULES:
            guess = CODE_RULES[name](codes)
        else:
            guess = (LOGIT_RULES[name](codes) + window.noise[:, index]).argmax(dim=1, keepdim=True)
        before = image.gather(1, place)
        image = image.scatter(1, place, before.where(before >= 0, guess))
    guesses = image.gather(1, places)
    return guesses.where(guesses < NUM_CODES, -1)


class RuleDrafts(Drafts):
    """Guesses by any of the rules, for images of `SIDE` x `SIDE` codes after contexts of one length."""

    def __init__(self, rule: str, scheduler: LuminaMGPTScheduler, batch: Batch) -> None:
        super().__init__(scheduler, scheduler.config.draft_init, batch)
        self.rule = rule

    def follow(self, loaded: Sequence[Row]) -> None:
        super().follow(loaded)
        if self.rule in WEIGHTS and self._neighbors is not None:
            self._neighbors.above_weight = WEIGHTS[self.rule]

    def fill(self, window: int, is_read: bool) -> None:
        batch, images = self.batch, self.batch.image_index
        if self.rule in CODE_RULES or self.rule in LOGIT_RULES:
            positions = batch.fed[images][:, None] + torch.arange(1, window + 1)
            symbols = batch.symbols[images]
            first = int(batch.first[images][0])
            image = symbols[:, first : first + SIDE * (SIDE + 1)]
            guesses = guess_in_order(self.rule, batch.open(positions), image, SIDE)
            drafts = symbols.gather(1, positions)
            batch.symbols[images] = symbols.scatter(1, positions, drafts.where(drafts >= 0, guesses))
        # What has no guess yet gets that of the engine's own rule.
        super().fill(window, is_read)


class RuleEngine(Engine):
    """An engine with the drafts of a rule."""

    def __init__(
        self, rule: str, transformer: torch.nn.Module, scheduler: LuminaMGPTScheduler, grammar: Grammar
    ) -> None:
        super().__init__(transformer, scheduler, grammar, torch.device("cpu"))
        if self._drafts is not None:
            self._drafts = RuleDrafts(rule, scheduler, self._batch)


@torch.inference_mode()
def sample(
    transformer: torch.nn.Module,
    rule: str,
    num_drafts: int,
    num_images: int,
    guidance_scale: float,
    top_k: int,
    seed: int,
) -> tuple[torch.LongTensor, list[float]]:
    """The codes of a batch of images, each of a photo and zoom of its own, and their forwards per code."""
    draft_init = rule if rule in DRAFT_INITS else "logits" if rule in WEIGHTS else "random"
    scheduler = LuminaMGPTScheduler(num_draft_tokens=num_drafts, draft_init=draft_init)
    size = (VOCABULARY.patch_size * SIDE, VOCABULARY.patch_size * SIDE)
    engine = RuleEngine(rule, transformer, scheduler, Grammar(VOCABULARY, size[0]))
    settings = scheduler.settings(guidance_scale=guidance_scale, top_k=top_k)
    rows = [
        engine.submit(
            Request(
                context=context_ids(index % len(PHOTOS), (index + index // ZOOMS) % ZOOMS),
                settings=settings,
                key=draw_key(torch.Generator().manual_seed(seed + index)),
                size=size,
                is_image=True,
            )
        )
        for index in range(num_images)
    ]
    forwards = [0] * num_images
    while not engine.is_idle:
        for index, row in enumerate(rows):
            forwards[index] += not row.is_finished
        engine.step()
    return torch.stack([row.codes for row in rows]), [number / (SIDE * SIDE) for number in forwards]


def save_picture(codes: torch.LongTensor, codebook: torch.Tensor, path: Path) -> None:
    """All images side by side, eight in a row, twice as large."""
    pixels = to_pixels(codes, codebook).clamp(0, 1).mul(255).byte()
    rows = [torch.cat(list(row), dim=1) for row in pixels.split(8)]
    picture = Image.fromarray(torch.cat(rows).numpy())
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC).save(path)


def measure(args: argparse.Namespace) -> None:
    transformer, codebook = load_small_model(args.model)
    for guidance_scale in args.guidance_scale:
        for top_k in args.top_k:
            settings = {"num_images": args.images, "guidance_scale": guidance_scale, "top_k": top_k, "seed": args.seed}
            expected, _ = sample(transformer, "above", 0, **settings)
            if args.picture:
                save_picture(expected, codebook, args.picture.with_suffix(f".cfg{guidance_scale:g}-k{top_k}.png"))
            print(f"\nCFG {guidance_scale:g}, top-k {top_k or 'none'}, {args.images} images", flush=True)
            print("| first guess | " + " | ".join(f"L = {number}" for number in args.num_drafts) + " |")
            print("|---" * (len(args.num_drafts) + 1) + "|")
            first_rule: dict[int, list[float]] = {}
            for rule in args.rules:
                cells = []
                for num_drafts in args.num_drafts:
                    codes, forwards = sample(transformer, rule, num_drafts, **settings)
                    if not torch.equal(codes, expected):
                        raise SystemExit(f"{rule} with {num_drafts} drafts gives other codes than no drafts.")
                    cells.append(describe(forwards, first_rule.setdefault(num_drafts, forwards)))
                print(f"| {rule} | " + " | ".join(cells) + " |", flush=True)


def describe(forwards: list[float], others: list[float]) -> str:
    """Mean and its standard error; beside other forwards for the same images, mean and mean difference to these."""
    mean = f"{statistics.mean(forwards):.3f}"
    if forwards is others:
        return f"{mean} ± {standard_error(forwards):.3f}"
    differences = [one - other for one, other in zip(forwards, others)]
    return f"{mean} ({statistics.mean(differences):+.3f} ± {standard_error(differences):.3f})"


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def measure_agreement(args: argparse.Namespace) -> None:
    """How many images are the same, to the code, with drafts and without, by the dtype of the weights."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        transformer = load_small_model(args.model)[0].to(dtype)
        for guidance_scale in args.guidance_scale:
            settings = {"num_images": args.images, "guidance_scale": guidance_scale, "top_k": 0, "seed": args.seed}
            expected, _ = sample(transformer, "logits", 0, **settings)
            for num_drafts in args.num_drafts:
                codes, _ = sample(transformer, "logits", num_drafts, **settings)
                is_same = (codes == expected).flatten(1)
                num_before = is_same.long().cumprod(dim=1).sum(dim=1).double()
                print(
                    f"{dtype}, CFG {guidance_scale:g}, {num_drafts} drafts: {int(is_same.all(dim=1).sum())} of"
                    f" {args.images} images the same, {num_before.mean() / (SIDE * SIDE):.0%} of the codes before the"
                    " first difference",
                    flush=True,
                )


def measure_cost(args: argparse.Namespace) -> None:
    """Time that a round of the rule `"logits"` takes beside the forward, for the released codebook at 768 px."""
    stride, num_codes, num_new = 49, 8192, 4
    scheduler = LuminaMGPTScheduler()
    key = torch.tensor([[0]])
    sampling = SamplingPlaces([scheduler.settings()], key.device)

    def open_window(first: int, number: int) -> Window:
        place = first + torch.arange(number)[None]
        noise = gumbel_noise(key.expand_as(place), place, num_codes)
        return Window(place, torch.tensor([[stride]]), noise, sampling.at(place))

    for num_drafts in args.num_drafts:
        rule = NeighborLogits(scheduler, 1, stride, num_codes, key.device)
        window, new = open_window(1000, num_drafts + 1), open_window(1001 + num_drafts, num_new)
        logits = torch.randn(1, num_drafts + 1, num_codes)
        micros = []
        for _ in range(50):
            start = time.perf_counter()
            rule.observe(window, logits)
            rule.guess(new)
            micros.append(1e6 * (time.perf_counter() - start))
        print(f"L = {num_drafts}: {statistics.median(micros):.0f} µs a round, {num_new} new places of one image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder that small_model.py wrote")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(DRAFT_INITS))
    parser.add_argument("--num_drafts", type=int, nargs="+", default=[3, 7, 15, 31, 63])
    parser.add_argument("--guidance_scale", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--top_k", type=int, nargs="+", default=[0], help="0 for all")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--picture", type=Path, help="PNG for the sampled images, one for each setting; multiples of 8"
    )
    parser.add_argument("--cost", action="store_true", help="only measure what a round of the rule `logits` costs")
    parser.add_argument("--agreement", action="store_true", help="only measure how often drafts change an image")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.cost:
        measure_cost(args)
    elif args.model is None:
        parser.error("--model is needed.")
    elif args.agreement:
        measure_agreement(args)
    else:
        measure(args)


if __name__ == "__main__":
    main()
