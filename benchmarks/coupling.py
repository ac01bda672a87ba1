# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Speculative sampling as the literature has it, plainly, to know what the equality of this project costs or gains.

A draft x was drawn from a law q, and a forward gives the law p of its place. It is kept with probability
min(1, p(x) / q(x)), else another code is drawn from what p has more than q: so it is of the law p, and as often as
possible the same (maximal coupling). All places up to the first that changed are final. What comes after is

* `"jacobi"`: drawn anew from p (Speculative Jacobi Decoding, https://huggingface.co/papers/2410.01699),
* `"coupled"`: coupled in the same way, which keeps more of it.

Images follow the law of the model, but a seed gives another image for every number of drafts. Every forward takes the
whole sequence, without a cache: this counts forwards, and times of it mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lumina_mgpt_diffusers import LuminaMGPTPipeline


RULES = ("jacobi", "coupled")
FIRST_LAWS = ("uniform", "above")


@dataclass
class Draft:
    """
    A guess of a code.

    Args:
        code (`int`): The guess.
        law (`torch.Tensor` of shape `(num_codes,)`): What it was drawn from.
    """

    code: int
    law: torch.Tensor


@dataclass
class CoupledSampler:
    """
    Samples one image.

    Args:
        pipe ([`LuminaMGPTPipeline`]): The model.
        prompt (`str`): The prompt.
        height (`int`), width (`int`): Size in pixels.
        guidance_scale (`float`): 1 for none.
        rule (`str`): One of `RULES`.
        first_law (`str`): What first guesses are drawn from: `"uniform"`, or the law of the place above.
        num_drafts (`int`): Guesses that a forward checks.
        seed (`int`): Of the random numbers.
    """

    pipe: LuminaMGPTPipeline
    prompt: str
    height: int
    width: int
    guidance_scale: float
    rule: str
    first_law: str
    num_drafts: int
    seed: int

    def __post_init__(self) -> None:
        self._random = torch.Generator().manual_seed(self.seed)
        vocabulary = self.pipe.image_vocabulary
        self._code_ids = vocabulary.code_ids
        self._row_end = vocabulary.row_end_id
        self._columns = self.width // self.pipe.vae_scale_factor
        self._num_places = self._columns * (self.height // self.pipe.vae_scale_factor)
        prefix = vocabulary.prefix(self.height, self.width)
        (prompt_ids,) = self.pipe.encode_prompt(self.prompt, height=self.height, width=self.width)[0].tolist()
        self._contexts = [prompt_ids + prefix, self.pipe.unconditional_context + prefix]
        if self.guidance_scale <= 1:
            del self._contexts[1]
        self._laws: dict[int, torch.Tensor] = {}

    @torch.inference_mode()
    def run(self) -> tuple[list[int], int]:
        """The codes in raster order, and how many forwards they took."""
        final: list[int] = []
        drafts: list[Draft] = []
        num_forwards = 0
        while len(final) < self._num_places:
            while len(drafts) < min(self.num_drafts, self._num_places - len(final) - 1):
                drafts.append(self._first_draft(len(final) + len(drafts)))
            laws = self._forward(final + [draft.code for draft in drafts], len(final))
            num_forwards += 1
            has_changed = False
            following: list[Draft] = []
            for draft, law in zip(drafts, laws):
                if has_changed:
                    code = self._draw(law) if self.rule == "jacobi" else self._couple(draft, law)
                    following.append(Draft(code, law))
                else:
                    final.append(self._couple(draft, law))
                    has_changed = final[-1] != draft.code
            if not has_changed:
                final.append(self._draw(laws[len(drafts)]))
            drafts = following
        return final, num_forwards

    def _forward(self, codes: list[int], first: int) -> list[torch.Tensor]:
        """The laws of the place `first` and of all after it, the last of which has no code yet."""
        tokens: list[int] = []
        for place, code in enumerate(codes):
            tokens.append(int(self._code_ids[code]))
            if (place + 1) % self._columns == 0:
                tokens.append(self._row_end)
        logits = []
        for context in self._contexts:
            # What stands before each place: with the row ends there are.
            before = [len(context) - 1 + place + place // self._columns for place in range(first, len(codes) + 1)]
            ids = torch.tensor([context + tokens])
            output = self.pipe.transformer(ids, use_cache=False, logits_to_keep=torch.tensor(before))
            logits.append(output.logits[0][:, self._code_ids].float())
        guided = logits[0] if len(logits) == 1 else logits[1] + self.guidance_scale * (logits[0] - logits[1])
        config = self.pipe.scheduler.config
        if config.top_k:
            least = guided.topk(min(config.top_k, guided.shape[1])).values[:, -1:]
            guided = guided.where(guided >= least, -torch.inf)
        laws = list((guided / config.temperature).softmax(dim=-1))
        self._laws.update(enumerate(laws, first))
        return laws

    def _first_draft(self, place: int) -> Draft:
        law = self._laws.get(place - self._columns) if self.first_law == "above" else None
        if law is None:
            law = torch.full((len(self._code_ids),), 1 / len(self._code_ids))
        return Draft(self._draw(law), law)

    def _couple(self, draft: Draft, law: torch.Tensor) -> int:
        """The draft or another code, of the given law."""
        ratio = float(law[draft.code] / draft.law[draft.code])
        if float(torch.rand((), generator=self._random)) < ratio:
            return draft.code
        rest = (law - draft.law).clamp(min=0)
        return self._draw(
            rest if rest.sum() > 0 else law
        )  # it is 0 only where both laws are the same but for rounding

    def _draw(self, law: torch.Tensor) -> int:
        return int(torch.multinomial(law, 1, generator=self._random))
