# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from .noise import draw_key, gumbel_noise
from .validation import (
    DRAFT_INITS,
    check_choice,
    check_guidance_scale,
    check_integer,
    check_num_draft_tokens,
    check_number,
    check_resolution,
    check_temperature,
    check_top_k,
    check_top_p,
    plain_number,
)


GUIDANCE_SCHEDULES = ("constant", "decay")

LEAST_DECAYED_SCALE = 4.0


@dataclass
class LuminaMGPTSchedulerOutput(BaseOutput):
    """
    Output class for the `step` function of the scheduler.

    Args:
        prev_sample (`torch.LongTensor` of shape `(batch_size, num_places)`):
            The sample with the codes of this step written in: those of the accepted places are final, those after
            them are the drafts that the next step checks.
        num_accepted (`torch.LongTensor` of shape `(batch_size,)`):
            Number of places, from `timestep` on, that are now final. At least 1.
    """

    prev_sample: torch.LongTensor
    num_accepted: torch.LongTensor


@dataclass(frozen=True)
class SamplerSettings:
    """
    How one image or answer is sampled, see [`LuminaMGPTScheduler`]; all in the form that sampling takes: a `top_k` of
    0 for all, a `temperature` of 0 where nothing is random, a `guidance_scale` of 1 where it is off.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    text_temperature: float = 1.0
    text_top_k: int = 0

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale > 1

    def for_text(self) -> SamplerSettings:
        """The settings of text, which is neither guided nor cut by probability."""
        temperature = 0.0 if self.text_top_k == 1 else self.text_temperature
        return replace(self, guidance_scale=1.0, temperature=temperature, top_k=self.text_top_k, top_p=1.0, min_p=0.0)


class SamplingPlaces:
    """
    What a sampling rule may know of the places that it samples.

    Args:
        settings (`list[SamplerSettings]`): Of each image.
        device (`torch.device`): Where the sampling runs.

    Attributes:
        index (`torch.LongTensor` of shape `(batch_size, window)`): Raster index of each code in its image.
        num_codes, num_columns (`torch.LongTensor` of shape `(batch_size, 1)`):
            Number of codes of each image, and of one of its rows.
        first (`torch.LongTensor` of shape `(batch_size, 1)`): Raster index of the first code that is not given.
        guidance_scale, temperature, top_p, min_p (`torch.Tensor` of shape `(batch_size, 1)`): float32 settings.
        top_k (`torch.LongTensor` of shape `(batch_size, 1)`): Number of codes that may be drawn, 0 for all.
        is_random (`torch.Tensor` of shape `(batch_size, 1)`): 1 where there is noise, 0 where the greatest logit wins.
    """

    index: torch.LongTensor
    num_codes: torch.LongTensor
    num_columns: torch.LongTensor
    first: torch.LongTensor

    def __init__(self, settings: Sequence[SamplerSettings], device: torch.device) -> None:
        self.settings = list(settings)

        def column(values: list, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device="cpu").to(device)[:, None]

        self.guidance_scale = column([one.guidance_scale for one in settings])
        self.temperature = column([one.temperature or 1.0 for one in settings])
        self.is_random = column([float(one.temperature > 0) for one in settings])
        self.top_k = column([one.top_k for one in settings], torch.long)
        self.top_p = column([one.top_p for one in settings])
        self.min_p = column([one.min_p for one in settings])
        # What the host has to know: without it a rule would wait for the device.
        self.any_random = any(one.temperature > 0 for one in settings)
        self.any_tempered = any(one.temperature not in (0, 1) for one in settings)
        self.any_top_p = any(one.temperature > 0 and one.top_p < 1 for one in settings)
        self.any_min_p = any(one.temperature > 0 and one.min_p > 0 for one in settings)
        self.greatest_top_k = max((one.top_k for one in settings if one.temperature > 0), default=0)

    def at(self, index: torch.LongTensor) -> SamplingPlaces:
        """The same images at other places."""
        places = copy.copy(self)
        places.index = index
        return places


def decayed_scale(places: SamplingPlaces) -> torch.Tensor:
    """
    The scale of guidance as the original code of Lumina-mGPT 2.0 changes it.

    Before each token after the size tags, row ends too, the scale is multiplied by `1 - n / m`, but stays at least 4:
    n is the number of tokens since the start token, m a quarter of the number of codes. It does so from the first code
    that is not given.

    Args:
        places ([`SamplingPlaces`]): Where the codes stand.

    Returns:
        `torch.Tensor` of shape `(batch_size, window)`: float32 scales.
    """
    length = places.num_codes.double() / 4
    # Tokens since the start token: two size tags, the codes and the ends of their rows.
    last, first = (2 + index + index // places.num_columns for index in (places.index, places.first))
    # The product of (length - n) / length from the first to the last.
    logarithm = torch.lgamma(length - first + 1) - torch.lgamma((length - last).clamp(min=1))
    factor = torch.exp(logarithm - (last - first + 1) * length.log()).where(last < length, 0.0)
    return (places.guidance_scale * factor).clamp(min=LEAST_DECAYED_SCALE).float()


class LuminaMGPTScheduler(SchedulerMixin, ConfigMixin):
    """
    The sampler of Lumina-mGPT's image codes: classifier-free guidance, top-k, temperature and checked drafts.

    **Noise belongs to the place.** For the place at index r of an image there is a Gumbel vector G[r] over the whole
    codebook, a function of the image's 64-bit key and r alone. The code is the argmax, over the codes that
    [`restrict`] leaves of the guided logits, of `guided / temperature + G[r]`, a sample of the softmax of
    `guided / temperature` restricted to them. Which code a place gets is thus a fixed function of the codes before it.

    **Drafts are checked by equality.** A forward may evaluate, beside the last final code, `num_draft_tokens` guesses
    of the codes to come. Each place it evaluates gets its code by the rule above; guesses are accepted for as long as
    they equal it, and the first unequal place still yields its own code. This is Jacobi iteration on a fixed function
    (compare Speculative Jacobi Decoding, https://huggingface.co/papers/2410.01699, which samples anew each time):
    the image does not depend on the number of drafts, on how they are guessed, nor on the rest of the batch.

    **A rule of one's own** is a subclass that overrides [`guide`] or [`restrict`]. Both see logits, and where they
    stand, of any number of places at once, and have to treat each by itself; drafts are then exact for it too.

    This model inherits from [`SchedulerMixin`] and [`ConfigMixin`]. Check the superclass documentation for the generic
    methods the library implements for all schedulers such as loading and saving.

    Args:
        guidance_scale (`float`, defaults to 4.0):
            Scale s of classifier-free guidance, `unconditional + s * (conditional - unconditional)`. Values of 1 and
            less turn it off. (The original code's definition; the paper prints s - 1.)
        temperature (`float`, defaults to 1.0):
            Divides the guided logits. 0 takes the greatest, and so do values below 1e-20.
        top_k (`int`, *optional*, defaults to 2000):
            Number of codes that may be drawn. `None` or 0 for all.
        top_p (`float`, defaults to 1.0):
            Only the most likely codes may be drawn whose probabilities just add up to this, after `top_k`.
        min_p (`float`, defaults to 0.0):
            Only codes at least this times as likely as the most likely one may be drawn.
        text_temperature (`float`, defaults to 1.0):
            Temperature of text tokens.
        text_top_k (`int`, *optional*, defaults to 5):
            Number of text tokens that may be drawn. `None` or 0 for all.
        resolution (`int`, defaults to 768):
            Base size of the checkpoint in pixels, from which the sizes it was trained on follow.
        num_draft_tokens (`int` or `"auto"`, defaults to `"auto"`):
            Number of tokens that a forward evaluates ahead; 0 is plain autoregression. `"auto"` follows what is
            measured as images are sampled: the time of a forward and the drafts that are accepted.
        draft_init (`str`, defaults to `"logits"`):
            First guess of a code: `"logits"` takes the code that its noise chooses from the logits of the places above
            and beside it, `"above"` copies the code above it, `"random"` takes the code that its noise alone would
            choose.
        batch_invariant (`bool`, *optional*):
            Whether bfloat16 and float16 images may not depend on drafts and batch either, which holds where all
            forwards have shapes whose kernels round alike. By default they have them on CPUs, for bfloat16; on GPUs
            that costs the larger part of what batches and drafts gain.
        guidance_schedule (`str`, defaults to `"constant"`):
            `"decay"` lets the scale fall over an image as the original code of Lumina-mGPT 2.0 does, for comparison
            with it, see [`decayed_scale`]: to 4, which it starts from at least.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 4.0,
        temperature: float = 1.0,
        top_k: int | None = 2000,
        text_temperature: float = 1.0,
        text_top_k: int | None = 5,
        resolution: int = 768,
        num_draft_tokens: int | str = "auto",
        draft_init: str = "logits",
        top_p: float = 1.0,
        min_p: float = 0.0,
        batch_invariant: bool | None = None,
        guidance_schedule: str = "constant",
    ) -> None:
        self.settings()
        check_choice("guidance_schedule", guidance_schedule, GUIDANCE_SCHEDULES)
        check_choice("draft_init", draft_init, DRAFT_INITS)
        check_choice("batch_invariant", batch_invariant, (None, True, False))
        # In types of Python's own, which can be saved.
        numbers = {"guidance_scale": guidance_scale, "temperature": temperature, "text_temperature": text_temperature}
        numbers |= {"top_p": top_p, "min_p": min_p}
        self.register_to_config(
            resolution=check_resolution(resolution),
            num_draft_tokens=check_num_draft_tokens(num_draft_tokens),
            top_k=None if top_k is None else check_top_k(top_k),
            text_top_k=None if text_top_k is None else check_top_k(text_top_k),
            **{name: plain_number(value) for name, value in numbers.items()},
        )
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0, dtype=torch.long)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # diffusers asks this for the settings to hand on, and a subclass may take those of its base as `**kwargs`.
        keys: set[str] = set()
        for one in input_class.__mro__:
            parameters = inspect.signature(one.__init__).parameters
            keys.update(parameters)
            if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
        return keys

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """
        Set the raster indices of the codes to sample, for loops of one's own around [`step`].

        Args:
            num_inference_steps (`int`): Number of codes of an image.
            device (`str` or `torch.device`, *optional*): Device of the timesteps.
        """
        self.num_inference_steps = check_integer("num_inference_steps", num_inference_steps, least=1)
        self.timesteps = torch.arange(num_inference_steps, device=device)

    def settings(self, **overrides: float | None) -> SamplerSettings:
        """
        The sampler settings of a call: those of the configuration but for `overrides` that are not None.

        Raises:
            `ValueError`: If one is out of its range.
        """

        def of(name: str) -> float | None:
            return self.config[name] if overrides.get(name) is None else overrides[name]

        top_k = check_top_k(of("top_k"))
        return SamplerSettings(
            guidance_scale=max(check_guidance_scale(of("guidance_scale")), 1.0),
            temperature=check_temperature(of("temperature")) if top_k != 1 else 0.0,
            top_k=top_k,
            top_p=check_top_p(of("top_p")),
            min_p=check_number("min_p", of("min_p"), 1.0),
            text_temperature=check_temperature(of("text_temperature"), "text_temperature"),
            text_top_k=check_top_k(of("text_top_k"), "text_top_k"),
        )

    # The rule

    def guide(self, conditional: torch.Tensor, unconditional: torch.Tensor, places: SamplingPlaces) -> torch.Tensor:
        """
        Classifier-free guidance. Not called where it is off.

        Args:
            conditional, unconditional (`torch.Tensor` of shape `(batch_size, window, num_codes)`): float32 logits.
            places ([`SamplingPlaces`]): Where they stand.

        Returns:
            `torch.Tensor` of the same shape: Guided logits.
        """
        scale = places.guidance_scale if self.config.guidance_schedule == "constant" else decayed_scale(places)
        # Tensors of all codes are large: in place, without memory for each operation.
        return (conditional - unconditional).mul_(scale[..., None]).add_(unconditional)

    def restrict(self, logits: torch.Tensor, places: SamplingPlaces) -> torch.Tensor:
        """
        Leave only the codes that may be drawn.

        Args:
            logits (`torch.Tensor` of shape `(batch_size, window, num_codes)`): float32 guided logits.
            places ([`SamplingPlaces`]): Where they stand.

        Returns:
            `torch.Tensor` of the same shape: The logits, -inf for codes that may not be drawn.
        """
        num_codes = logits.shape[-1]
        if 0 < places.greatest_top_k < num_codes:
            greatest = logits.topk(places.greatest_top_k, dim=-1).values
            top_k = places.top_k[..., None].expand(*logits.shape[:-1], 1)
            lowest = greatest.gather(-1, (top_k - 1).clamp(0, greatest.shape[-1] - 1))
            logits = logits.masked_fill((logits < lowest) & (top_k > 0) & (top_k < num_codes), -math.inf)
        if places.any_min_p:
            least = logits.amax(dim=-1, keepdim=True) + (places.temperature * places.min_p.log())[..., None]
            logits = logits.masked_fill(logits < least, -math.inf)
        if places.any_top_p:
            ordered, order = (logits / places.temperature[..., None]).sort(dim=-1, descending=True)
            probabilities = ordered.softmax(dim=-1)
            # A code is left out if those before it are enough.
            is_enough = (probabilities.cumsum(dim=-1) - probabilities >= places.top_p[..., None]) & (
                places.top_p[..., None] < 1
            )
            logits = logits.masked_fill(torch.zeros_like(is_enough).scatter(-1, order, is_enough), -math.inf)
        return logits

    def choose(self, logits: torch.Tensor, noise: torch.Tensor | None, places: SamplingPlaces) -> torch.LongTensor:
        """
        Choose the code of each place.

        Args:
            logits (`torch.Tensor` of shape `(batch_size, window, num_codes)`): float32 guided logits.
            noise (`torch.Tensor` of the same shape, *optional*): Gumbel noise. Not needed where nothing is random.
            places ([`SamplingPlaces`]): Where they stand.

        Returns:
            `torch.LongTensor` of shape `(batch_size, window)`: Codes.
        """
        if noise is None:
            return self._best(self.restrict(logits, places), None, places)
        is_plain = type(self).restrict is LuminaMGPTScheduler.restrict
        if logits.device.type != "cpu" or not is_plain or places.any_min_p or places.any_top_p:
            return self._best(self.restrict(logits, places), noise, places)
        # The code of the greatest score of all is mostly among the `top_k`. To see whether it is takes a fraction of
        # the time that finding these takes; but it takes the host, which on a GPU would have to wait.
        codes = self._best(logits, noise, places)
        if not 0 < places.greatest_top_k < logits.shape[-1]:
            return codes
        rank = (logits > logits.gather(-1, codes[..., None])).sum(dim=-1, dtype=torch.int32)
        is_outside = (rank >= places.top_k) & (places.top_k > 0)
        if is_outside.any():
            images = [places.settings[image] for image in is_outside.nonzero()[:, 0].tolist()]
            alone, of_images = logits[is_outside][:, None], SamplingPlaces(images, logits.device)
            codes[is_outside] = self._best(self.restrict(alone, of_images), noise[is_outside][:, None], of_images)[
                :, 0
            ]
        return codes

    def _best(self, logits: torch.Tensor, noise: torch.Tensor | None, places: SamplingPlaces) -> torch.LongTensor:
        if noise is None:
            return logits.max(dim=-1).indices  # three times as fast as `argmax` on CPUs
        # The noise is 0 times itself where nothing is random, so that a row has the same scores in every batch.
        scores = logits / places.temperature[..., None] if places.any_tempered else logits
        return torch.addcmul(scores, noise, places.is_random[..., None]).max(dim=-1).indices

    def log_probs(self, logits: torch.Tensor, codes: torch.LongTensor, places: SamplingPlaces) -> torch.Tensor:
        """
        Logarithms of the probabilities with which codes are drawn: those of the rule, guidance and restriction
        included.

        Args:
            logits (`torch.Tensor` of shape `(batch_size, window, num_codes)`): float32 guided logits.
            codes (`torch.LongTensor` of shape `(batch_size, window)`): Codes.
            places ([`SamplingPlaces`]): Where they stand.

        Returns:
            `torch.Tensor` of shape `(batch_size, window)`: float32, 0 where nothing is random.
        """
        scores = self.restrict(logits, places) / places.temperature[..., None]
        log_probs = scores.log_softmax(dim=-1).gather(-1, codes[..., None])[..., 0]
        return log_probs.where(places.is_random > 0, 0.0)

    # Acceptance

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.LongTensor,
        sample: torch.LongTensor,
        *,
        noise: torch.Tensor | None = None,
        given: torch.BoolTensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        places: SamplingPlaces | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        return_dict: bool = True,
    ) -> LuminaMGPTSchedulerOutput | tuple[torch.LongTensor, torch.LongTensor]:
        """
        Sample the codes of consecutive places and accept the drafts that they confirm.

        The function is pure: it changes neither its arguments nor the scheduler. Rows are independent.

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, window, num_codes)`):
                Guided logits of the places `timestep, timestep + 1, …`; those after the first were computed from the
                drafts that `sample` holds there.
            timestep (`int` or `torch.LongTensor` of shape `(batch_size,)`):
                The first place that is not final. Places past the end of `sample` are ignored.
            sample (`torch.LongTensor` of shape `(batch_size, num_places)`):
                Final codes before `timestep`, drafts from there on; -1 where there is none.
            noise (`torch.Tensor` of shape `(batch_size, window, num_codes)`, *optional*):
                Gumbel noise of these places, see [`~noise.gumbel_noise`].
            given (`torch.BoolTensor` of shape `(batch_size, num_places)`, *optional*):
                Places whose value in `sample` is not to be sampled. They count as confirmed drafts.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                If no noise is passed, draws a key for it: one for all rows or one for each.
            places ([`SamplingPlaces`], *optional*):
                Where the logits stand and how each row is sampled, instead of `temperature` and `top_k`.
            temperature (`float`, *optional*), top_k (`int`, *optional*):
                Override the configuration; `top_k=0` for all.
            return_dict (`bool`, defaults to `True`): Whether to return a [`LuminaMGPTSchedulerOutput`] or a tuple.

        Returns:
            [`LuminaMGPTSchedulerOutput`] or `tuple`: `(prev_sample, num_accepted)`.
        """
        batch_size, window, num_codes = model_output.shape
        if len(sample) != batch_size:
            raise ValueError(f"`sample` has {len(sample)} rows but `model_output` has {batch_size}.")
        # A window by itself has no places before or after it.
        is_window = isinstance(timestep, int) and timestep == 0 and sample.shape[1] == window
        slots = torch.arange(window, device=sample.device).expand(batch_size, -1)
        if isinstance(timestep, torch.Tensor):
            slots = slots + timestep.to(sample.device).expand(batch_size)[:, None]
        elif timestep:
            slots = slots + timestep
        if places is None:
            settings = self.settings(temperature=temperature, top_k=top_k)
            places = SamplingPlaces([settings] * batch_size, model_output.device)
            places.index = slots
            places.num_codes = places.num_columns = torch.full_like(slots[:, :1], sample.shape[1])
            places.first = torch.zeros_like(slots[:, :1])
        if noise is None and places.any_random:
            keys = self._draw_keys(generator, batch_size).to(model_output.device)
            noise = gumbel_noise(keys[:, None].expand(-1, window), slots, num_codes)

        drafts = sample
        if not is_window:
            # Room for the places past the end, so that they need no case of their own.
            padded = nn.functional.pad(sample, (0, window), value=-1)
            slots = slots.clamp(max=padded.shape[1] - 1)
            drafts = padded.gather(1, slots)
            given = None if given is None else nn.functional.pad(given, (0, window)).gather(1, slots)
        codes = self.choose(model_output.float(), noise, places)
        if given is not None:
            codes = torch.where(given, drafts, codes)
        confirmed = (codes == drafts)[:, :-1].long().cumprod(dim=1).sum(dim=1)
        prev_sample = codes if is_window else padded.scatter(1, slots, codes)[:, : sample.shape[1]]

        if not return_dict:
            return prev_sample, confirmed + 1
        return LuminaMGPTSchedulerOutput(prev_sample=prev_sample, num_accepted=confirmed + 1)

    def _draw_keys(
        self, generator: torch.Generator | list[torch.Generator] | None, batch_size: int
    ) -> torch.LongTensor:
        if generator is None:
            raise ValueError("`step` needs `noise` or `generator` unless `temperature` is 0 or `top_k` is 1.")
        generators = generator if isinstance(generator, list) else [generator] * batch_size
        if len(generators) != batch_size:
            raise ValueError(f"`generator` is a list of {len(generators)} but the batch size is {batch_size}.")
        return torch.tensor([draw_key(one) for one in generators], device="cpu")


__all__ = ["LuminaMGPTScheduler", "LuminaMGPTSchedulerOutput", "SamplerSettings", "SamplingPlaces"]
