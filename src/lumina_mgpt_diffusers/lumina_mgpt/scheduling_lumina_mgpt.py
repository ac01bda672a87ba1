# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from .validation import check_guidance_scale, check_temperature, check_top_k, is_integer


DRAFT_INITS = ("logits", "above", "random")


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


class LuminaMGPTScheduler(SchedulerMixin, ConfigMixin):
    """
    The sampler of Lumina-mGPT's image codes: classifier-free guidance, top-k, temperature and checked drafts.

    **Noise belongs to the place.** For the code at raster index r a Gumbel vector G[r] over the whole codebook is
    drawn from the generator of its image. The code is the argmax, over the `top_k` greatest guided logits, of
    `guided / temperature + G[r]`, a sample of the softmax of `guided / temperature` restricted to them. Which code a
    place gets is thus a fixed function of the codes before it.

    **Drafts are checked by equality.** A forward may evaluate, beside the last final code, `num_draft_tokens` guesses
    of the codes to come. Each place it evaluates gets its code by the rule above; guesses are accepted for as long as
    they equal it, and the first unequal place still yields its own code. This is Jacobi iteration on a fixed function
    (compare Speculative Jacobi Decoding, https://huggingface.co/papers/2410.01699, which samples anew each time):
    the image does not depend on the number of drafts, on how they are guessed, nor on the rest of the batch.

    This model inherits from [`SchedulerMixin`] and [`ConfigMixin`]. Check the superclass documentation for the generic
    methods the library implements for all schedulers such as loading and saving.

    Args:
        guidance_scale (`float`, defaults to 4.0):
            Scale s of classifier-free guidance, `unconditional + s * (conditional - unconditional)`. 1.0 turns it
            off. (The original code's definition; the paper prints s - 1.)
        temperature (`float`, defaults to 1.0):
            Divides the guided logits. 0 takes the greatest.
        top_k (`int`, *optional*, defaults to 2000):
            Number of codes that may be drawn. `None` or 0 for all.
        text_temperature (`float`, defaults to 1.0):
            Temperature of text tokens.
        text_top_k (`int`, *optional*, defaults to 5):
            Number of text tokens that may be drawn. `None` or 0 for all.
        resolution (`int`, defaults to 768):
            Base size of the checkpoint in pixels, from which the sizes it was trained on follow.
        num_draft_tokens (`int`, defaults to 0):
            Number of tokens that a forward evaluates ahead. 0 is plain autoregression.
        draft_init (`str`, defaults to `"logits"`):
            First guess of a code: `"logits"` takes the code that its noise chooses from the logits of the places above
            and beside it, `"above"` copies the code above it, `"random"` takes the code that its noise alone would
            choose.
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
        num_draft_tokens: int = 0,
        draft_init: str = "logits",
    ) -> None:
        check_guidance_scale(guidance_scale)
        for name, value in (("temperature", temperature), ("text_temperature", text_temperature)):
            check_temperature(value, name)
        for name, value in (("top_k", top_k), ("text_top_k", text_top_k)):
            check_top_k(value, name)
        if not is_integer(resolution) or resolution < 32 or resolution % 32:
            raise ValueError(f"`resolution` has to be a positive multiple of 32 pixels but is {resolution!r}.")
        if not is_integer(num_draft_tokens) or num_draft_tokens < 0:
            raise ValueError(f"`num_draft_tokens` has to be an integer >= 0 but is {num_draft_tokens!r}.")
        if draft_init not in DRAFT_INITS:
            raise ValueError(f"`draft_init` has to be one of {list(DRAFT_INITS)} but is {draft_init!r}.")
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
        Set the raster indices of the codes to sample. Run before the sampling starts.

        Args:
            num_inference_steps (`int`): Number of codes of an image.
            device (`str` or `torch.device`, *optional*): Device of the timesteps.
        """
        if not is_integer(num_inference_steps) or num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` has to be an integer >= 1 but is {num_inference_steps!r}.")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps, device=device)

    @staticmethod
    def draw_noise(
        shape: tuple[int, ...], generator: torch.Generator, device: str | torch.device | None = None
    ) -> torch.Tensor:
        """
        Draw the Gumbel noise of one image in raster order.

        Args:
            shape (`tuple[int, ...]`): `(num_codes_of_the_image, codebook_size)`.
            generator (`torch.Generator`): The image's generator, on any device.
            device (`str` or `torch.device`, *optional*): Where the noise is wanted, by default at the generator's.

        Returns:
            `torch.Tensor`: float32 noise of that shape.
        """
        uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)
        # 0 would become a noise of -inf and could leave a place without any finite score.
        uniform = uniform.to(device or generator.device).clamp_(min=torch.finfo(torch.float32).tiny)
        return uniform.log_().neg_().log_().neg_()

    def sample(
        self,
        logits: torch.Tensor,
        noise: torch.Tensor | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
    ) -> torch.LongTensor:
        """
        Choose the code of each place.

        Args:
            logits (`torch.Tensor` of shape `(..., codebook_size)`): Guided logits, of any floating dtype.
            noise (`torch.Tensor` of shape `(..., codebook_size)`, *optional*):
                Gumbel noise of the places. Not needed at temperature 0 or a `top_k` of 1.
            temperature (`float`, *optional*), top_k (`int`, *optional*):
                Override the configuration; `top_k=0` for all.

        Returns:
            `torch.LongTensor` of shape `(...)`: Codes.
        """
        temperature = self.config.temperature if temperature is None else temperature
        top_k = self.config.top_k if top_k is None else top_k
        logits = logits.float()
        if self.is_greedy(temperature, top_k):
            return logits.argmax(dim=-1)
        scores = logits / temperature + noise
        if not top_k or top_k >= logits.shape[-1]:
            return scores.argmax(dim=-1)
        if logits.device.type != "cpu":
            return self._argmax_of_top_k(scores, logits, top_k)
        # The code of the greatest score of all is mostly among the `top_k`. To see whether it is takes a fraction of
        # the time that finding these takes; but it takes the host, which on a GPU would have to wait.
        codes = scores.argmax(dim=-1)
        is_outside = (logits > logits.gather(-1, codes[..., None])).sum(dim=-1) >= top_k
        if is_outside.any():
            codes[is_outside] = self._argmax_of_top_k(scores[is_outside], logits[is_outside], top_k)
        return codes

    @staticmethod
    def _argmax_of_top_k(scores: torch.Tensor, logits: torch.Tensor, top_k: int) -> torch.LongTensor:
        lowest = logits.topk(top_k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
        return scores.masked_fill(logits < lowest, -math.inf).argmax(dim=-1)

    def is_greedy(self, temperature: float | None = None, top_k: int | None = None) -> bool:
        """Whether the choice needs no noise. Arguments override the configuration as in [`sample`]."""
        temperature = self.config.temperature if temperature is None else temperature
        top_k = self.config.top_k if top_k is None else top_k
        return temperature == 0 or top_k == 1

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.LongTensor,
        sample: torch.LongTensor,
        *,
        noise: torch.Tensor | None = None,
        given: torch.BoolTensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        return_dict: bool = True,
    ) -> LuminaMGPTSchedulerOutput | tuple[torch.LongTensor, torch.LongTensor]:
        """
        Sample the codes of consecutive places and accept the drafts that they confirm.

        The function is pure: it changes neither its arguments nor the scheduler. Rows are independent.

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, window, codebook_size)`):
                Guided logits of the places `timestep, timestep + 1, …`; those after the first were computed from the
                drafts that `sample` holds there.
            timestep (`int` or `torch.LongTensor` of shape `(batch_size,)`):
                The first place that is not final. Places past the end of `sample` are ignored.
            sample (`torch.LongTensor` of shape `(batch_size, num_places)`):
                Final codes before `timestep`, drafts from there on; -1 where there is none.
            noise (`torch.Tensor` of shape `(batch_size, window, codebook_size)`, *optional*):
                Gumbel noise of these places, see [`draw_noise`].
            given (`torch.BoolTensor` of shape `(batch_size, num_places)`, *optional*):
                Places whose value in `sample` is not to be sampled. They count as confirmed drafts.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Draws the noise if none is passed: one for all rows or one for each.
            temperature (`float`, *optional*), top_k (`int`, *optional*):
                Override the configuration; `top_k=0` for all.
            return_dict (`bool`, defaults to `True`): Whether to return a [`LuminaMGPTSchedulerOutput`] or a tuple.

        Returns:
            [`LuminaMGPTSchedulerOutput`] or `tuple`: `(prev_sample, num_accepted)`.
        """
        batch_size, window, codebook_size = model_output.shape
        if len(sample) != batch_size:
            raise ValueError(f"`sample` has {len(sample)} rows but `model_output` has {batch_size}.")
        check_temperature(self.config.temperature if temperature is None else temperature)
        check_top_k(self.config.top_k if top_k is None else top_k)
        if noise is None and not self.is_greedy(temperature, top_k):
            noise = self._draw_window(generator, batch_size, window, codebook_size, model_output.device)

        first = torch.as_tensor(timestep, device=sample.device).expand(batch_size)
        places = first[:, None] + torch.arange(window, device=sample.device)  # (batch_size, window)
        # Room for the places past the end, so that they need no case of their own.
        padded = torch.nn.functional.pad(sample, (0, window), value=-1)
        places = places.clamp(max=padded.shape[1] - 1)
        drafts = padded.gather(1, places)
        codes = self.sample(model_output, noise, temperature, top_k)
        if given is not None:
            codes = torch.where(torch.nn.functional.pad(given, (0, window)).gather(1, places), drafts, codes)
        confirmed = (codes == drafts)[:, :-1].long().cumprod(dim=1).sum(dim=1)
        prev_sample = padded.scatter(1, places, codes)[:, : sample.shape[1]]

        if not return_dict:
            return prev_sample, confirmed + 1
        return LuminaMGPTSchedulerOutput(prev_sample=prev_sample, num_accepted=confirmed + 1)

    def _draw_window(
        self,
        generator: torch.Generator | list[torch.Generator] | None,
        batch_size: int,
        window: int,
        codebook_size: int,
        device: torch.device,
    ) -> torch.Tensor:
        if generator is None:
            raise ValueError("`step` needs `noise` or `generator` unless `temperature` is 0 or `top_k` is 1.")
        generators = generator if isinstance(generator, list) else [generator] * batch_size
        if len(generators) != batch_size:
            raise ValueError(f"`generator` is a list of {len(generators)} but the batch size is {batch_size}.")
        return torch.stack([self.draw_noise((window, codebook_size), one, device) for one in generators])


__all__ = ["LuminaMGPTScheduler", "LuminaMGPTSchedulerOutput"]
