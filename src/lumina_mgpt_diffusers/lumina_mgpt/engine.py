# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The engine: every answer is a row, and a step makes each row go on by at least one token.

A request takes one row of the batch and one row of the KV cache, with guidance two. What a row is doing (text, size
tags, an image of some size) is its own, so sizes and tasks mix, and rows come and go between steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn as nn
from diffusers.utils.torch_utils import is_compiled_module

from .batch import Batch
from .drafts import Drafts
from .evaluation import evaluating
from .fingerprint import fingerprint
from .host_copy import HostCopy
from .kv_cache import SlotCache
from .noise import gumbel_noise
from .request import Grammar, Request
from .row import Row
from .scheduling_lumina_mgpt import LuminaMGPTScheduler, SamplerSettings, SamplingPlaces
from .slot_attention import LEAST_QUERIES
from .slots import CONDITIONAL, LENGTH_STEP, UNCONDITIONAL, Slots, round_up
from .window_tuner import WindowTuner
from .windows import MAX_WINDOW, ForwardShapes


# By device type, where compiled code may be CUDA graphs, which are recorded for a length: they get fewer.
COMPILED_LENGTH_STEP = {"cuda": 512}

# By device type: a device that works through a queue has the next step in it while the host reads of the last.
FRONTIER_LAG = {"cuda": 1}

# Most known tokens that one step passes over.
MAX_RUN = 31

NO_LOGITS = "The transformer gave logits that are not finite (NaN or infinite), of which no token can be sampled."


class Engine:
    r"""
    Samples requests, as many at a time as there are.

    It keeps nothing outside of itself; several engines may run on the same transformer and scheduler, each in its
    thread. It changes neither, but a transformer in training mode is out of it while any of them takes a step.

    Args:
        transformer ([`LuminaMGPTTransformer`]): The model.
        scheduler ([`LuminaMGPTScheduler`]): The sampler.
        grammar ([`Grammar`]): Which token may follow.
        device (`torch.device`): Where the transformer runs.
        num_draft_tokens (`int` or `"auto"`, *optional*), draft_init (`str`, *optional*):
            See [`LuminaMGPTScheduler`], whose configuration is the default.
        max_slots (`int`, *optional*):
            Most rows of the KV cache; requests wait until there is room. By default all are sampled at once.

    Attributes:
        cache ([`SlotCache`], *optional*): The KV cache. That of an engine that has ended is used again if it fits.
        tuner ([`WindowTuner`], *optional*): Chooses the windows if the number of drafts is `"auto"`.
    """

    def __init__(
        self,
        transformer: nn.Module,
        scheduler: LuminaMGPTScheduler,
        grammar: Grammar,
        device: torch.device,
        num_draft_tokens: int | str | None = None,
        draft_init: str | None = None,
        max_slots: int | None = None,
    ) -> None:
        config = scheduler.config
        self.transformer = transformer
        self.scheduler = scheduler
        self.grammar = grammar
        self.device = device
        self.num_draft_tokens = config.num_draft_tokens if num_draft_tokens is None else num_draft_tokens
        self.max_slots = max_slots
        self.rows: list[Row] = []
        self._waiting: deque[Row] = deque()
        self._batch = Batch(grammar.vocabulary, transformer.config.vocab_size, device)
        self._drafts = None
        if self.num_draft_tokens != 0:
            self._drafts = Drafts(scheduler, config.draft_init if draft_init is None else draft_init, self._batch)
        self._text_scheduler = LuminaMGPTScheduler()
        self._choosers: list[tuple[Row, SamplerSettings, tuple]] = []
        # Whether rows are finished, and whether others need other slots than they have.
        self._is_stale = self._is_changed = False
        # Steps that the host does not know the result of, each with its window.
        self._unread: deque[tuple[HostCopy, int]] = deque()
        self._busy = self._busy_until_read = 0.0
        self._busy_since: float | None = None
        self._is_compiled = is_compiled(transformer)
        self._is_recorded = self._is_compiled and device.type in COMPILED_LENGTH_STEP
        self._guess, self._sample = Drafts.guess, Engine._commit_codes
        if self._is_recorded:
            # Some 190 small operations, beside a forward that is one graph: compiled they are about 20.
            self._guess, self._sample = (torch.compile(one, dynamic=True) for one in (self._guess, self._sample))
        is_quantised = getattr(transformer, "hf_quantizer", None) is not None
        is_plain = not is_quantised and not any(map(is_compiled, transformer.modules()))
        shapes = ForwardShapes.for_device(device, transformer.dtype, config.batch_invariant, is_plain)
        self.tuner = None
        if self.num_draft_tokens == "auto" and shapes.window is None:
            # Short windows are other code than longer ones, once compiled.
            least = LEAST_QUERIES if self._is_compiled else 1
            sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if least <= size <= shapes.max_window]
            self.tuner = WindowTuner(sizes)
        most = MAX_WINDOW if self.num_draft_tokens == "auto" else max(self.num_draft_tokens, MAX_RUN) + 1
        length_step = COMPILED_LENGTH_STEP[device.type] if self._is_recorded else LENGTH_STEP
        code_range = grammar.vocabulary.code_range
        max_window = min(most, shapes.max_window)
        self._slots = Slots(transformer, device, shapes, max_window, length_step, code_range)
        in_range = grammar.vocabulary.code_ids.cpu() - code_range[0]
        # Where the range holds the codes in order and nothing else, the logits are already those of the codebook.
        is_identity = torch.equal(in_range, torch.arange(code_range[1] - code_range[0], device="cpu"))
        self._codebook_order = None if is_identity else in_range.to(device)

    # Requests

    def submit(self, request: Request) -> Row:
        """Take a request. Its row, which is returned, is sampled from the next step on that has room for it."""
        row = Row(request, self.grammar)
        self._wait(row)
        return row

    def _wait(self, row: Row) -> None:
        if row.in_image and row.image.stop <= row.image.first:
            # Nothing of it is to be sampled.
            row.close_image(row.image.given, self.log_probs(row))
        else:
            self._waiting.append(row)

    @property
    def cache(self) -> SlotCache | None:
        """The KV cache."""
        return self._slots.cache

    @cache.setter
    def cache(self, cache: SlotCache) -> None:
        self._slots.cache = cache

    @property
    def cache_kind(self) -> tuple:
        """What a KV cache has to have in common with that of this engine to be used in its place."""
        autocast = torch.get_autocast_dtype(self.device.type) if torch.is_autocast_enabled(self.device.type) else None
        config = self.transformer.config
        heads = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        return (self.transformer.dtype, self.device, autocast, config.num_hidden_layers, *heads)

    def contents_kind(self) -> tuple:
        """What a KV cache has to have in common for what is in it to be what this engine would write."""
        return (*self.cache_kind, fingerprint(self.transformer, self.device, self._slots.logits_range))

    @property
    def is_idle(self) -> bool:
        """Whether all requests are finished."""
        return not self._waiting and all(row.is_finished for row in self.rows)

    def codes(self, row: Row) -> torch.LongTensor:
        """Codes `(rows, columns)` of the image that a row is in; -1 where none is final yet."""
        if not row.in_image:
            return row.codes.to(self.device)
        return self._batch.codes(row) if row in self._batch.images else row.image.given.to(self.device)

    def log_probs(self, row: Row) -> torch.Tensor | None:
        """Log-probabilities `(rows, columns)` of the codes of the image that a row is in, if they are wanted."""
        if not row.request.needs_log_probs:
            return None
        if not row.in_image:
            return row.log_probs
        given = torch.zeros(row.image.given.shape, device="cpu")
        return self._batch.image_log_probs(row).cpu() if row in self._batch.images else given

    def set_codes(self, row: Row, codes: torch.LongTensor, first_change: int) -> None:
        """
        Change the image of a row while it is sampled, or after.

        Codes become given ones; where they are -1 they are sampled anew. Sampling goes on from the first change, so
        that all that is still to be sampled sees it.

        Args:
            row ([`Row`]): The row.
            codes (`torch.LongTensor` of shape `(rows, columns)`): The codes to go on from.
            first_change (`int`): Raster index of the first that differs from what was there.
        """
        self.read()
        row.reopen(codes.cpu(), first_change)
        if row in self.rows:
            self._batch.load(row)
            self._batch.locate()
            if self._drafts is not None:
                self._drafts.follow([row])
        elif row not in self._waiting:
            self._wait(row)

    def set_settings(self, row: Row, settings: SamplerSettings) -> None:
        """Sample the rest of an answer in another way."""
        row.settings = settings
        self._is_stale = self._is_changed = True

    def stop(self, row: Row) -> None:
        """End the answer of a row at what there is."""
        self.read()
        if row.is_finished:
            return
        if row in self._batch.images:
            row.stop_here(self._batch.codes(row).cpu(), self.log_probs(row))
        else:
            row.stop_here(row.image.given if row.in_image else None)
        if row in self._waiting:
            self._waiting.remove(row)
        else:
            self._keep_cache(row)
        self._is_stale = True

    def discard(self, row: Row) -> None:
        """Let a row go that has failed, or that nobody waits for."""
        if row in self._waiting:
            self._waiting.remove(row)
        if not row.is_finished:
            row.fail(RuntimeError("The request was discarded."))
        self._is_stale = True

    # A step

    @torch.no_grad()
    def step(self) -> None:
        """Run the transformer once and make at least one more token of every row final."""
        with evaluating(self.transformer):
            self._arrange()
            if not self.rows:
                return
            with self._timed():
                window = self._window()
                if self._drafts is not None and self._batch.images:
                    self._guess(self._drafts, self._drafts.offsets(window, is_read=not self._unread))
                self._commit(window, *self._forward(window))
            self._finish_rows()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the time inside as that of steps. What the caller does between them is not."""
        if self._busy_since is not None:
            yield
            return
        self._busy_since = time.perf_counter()
        try:
            yield
        finally:
            self._busy_now()
            self._busy_since = None

    def _busy_now(self) -> float:
        """Seconds that steps have taken so far."""
        now = time.perf_counter()
        self._busy += now - self._busy_since
        self._busy_since = now
        return self._busy

    def _window(self) -> int:
        """How many places the next forward takes."""
        shapes = self._slots.shapes
        if shapes.window is not None:
            return shapes.window
        window = 1
        if self._batch.images:
            window = self.tuner.choose(len(self._slots)) if self.tuner else self.num_draft_tokens + 1
        run = min(max(row.run() for row in self.rows if not row.is_finished), MAX_RUN)
        return min(max(window, run + 1), shapes.max_window)

    def _forward(self, window: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.LongTensor]:
        """Logits of the codes for all rows of the cache, those of text for the rows in text, and positions."""
        slots, texts = self._slots, set(self._batch.texts)
        ids, positions = self._batch.window_ids(window)
        slot_ids, slot_positions = ids[self._slot_rows], positions[self._slot_rows] - self._slot_offsets
        reach = max(row.num_fed - offset for (row, _), offset in zip(slots.entries, slots.offsets))
        reach += sum(size for _, size in self._unread) + window
        length = min(round_up(reach, slots.length_step), slots.cache.max_length - 1)
        logits, token_logits = [], {}
        for start, stop, view in slots.groups(window):
            view.limit(length, self.device, are_consecutive=True)
            own = [
                (index, row)
                for index, (row, branch) in enumerate(slots.entries[start:stop])
                if branch == CONDITIONAL and row in texts
            ]
            own_ids, own_positions = slot_ids[start:stop], slot_positions[start:stop]
            text_places = None
            if own:
                places = [(index, min(row.run(), window - 1)) for index, row in own]
                # Where one shape serves all, the head over all token ids has one too. Compiled, a single place is
                # other code than several.
                least = 1 + self._is_compiled if slots.shapes.window is None else stop - start
                places += places[-1:] * (least - len(places))
                text_places = tuple(map(self._batch.upload, zip(*places)))
            if self._is_compiled and not self._is_recorded:
                # One graph serves any number of rows, and windows of any length but one.
                for tensor in (own_ids, own_positions, *(text_places or ())):
                    for dim in range(tensor.ndim):
                        torch._dynamo.maybe_mark_dynamic(tensor, dim)
            with slots.shapes.context(own_ids.numel()):
                output = self.transformer(
                    input_ids=own_ids,
                    position_ids=own_positions,
                    past_key_values=view,
                    logits_range=slots.logits_range,
                    text_places=text_places,
                )
            logits.append(output.logits.float())
            token_logits.update((row, output.text_logits[index].float()) for index, (_, row) in enumerate(own))
        codes = torch.cat(logits) if len(logits) > 1 else logits[0]
        if self._codebook_order is not None:
            codes = codes[..., self._codebook_order]
        of_texts = torch.stack([token_logits[row] for row in self._batch.texts]) if texts else None
        return codes, of_texts, positions

    def _commit(
        self, window: int, logits: torch.Tensor, token_logits: torch.Tensor | None, positions: torch.LongTensor
    ) -> None:
        """Sample all rows and go on by what is accepted."""
        is_finite = torch.ones(len(self.rows), dtype=torch.bool, device=self.device)
        if self._batch.images:
            unconditional = None if self._guided is None else logits[self._unconditional]
            self._sample(self, logits[self._conditional], unconditional, positions + 1, is_finite)
        status = [self._batch.fed, is_finite]
        if token_logits is not None:
            status.append(self._commit_tokens(window, token_logits, is_finite))
        self._unread.append((HostCopy(torch.cat([part.long() for part in status])), window))
        lag = 0 if self._batch.texts else FRONTIER_LAG.get(self.device.type, 0)
        while len(self._unread) > lag:
            self._read_oldest()

    def _commit_codes(
        self,
        conditional: torch.Tensor,
        unconditional: torch.Tensor | None,
        positions: torch.LongTensor,
        is_finite: torch.BoolTensor,
    ) -> None:
        # Compiled on GPUs: all that it branches on stays the same for many steps.
        batch, images = self._batch, self._batch.image_index
        window = batch.open(positions[images])
        guided = conditional
        if unconditional is not None:
            guided = self.scheduler.guide(conditional, unconditional, window.rule)
            if not self._all_guided:
                guided = guided.where(self._guided[:, None, None], conditional)
        symbols, is_known = batch.symbols[images], batch.is_known[images]
        places = positions[images]
        given = is_known.gather(1, places)
        output = self.scheduler.step(
            guided,
            0,
            symbols.gather(1, places),
            noise=window.noise,
            given=given,
            places=window.rule,
        )
        codes, number = output.prev_sample, output.num_accepted
        is_accepted = torch.arange(codes.shape[1], device=self.device) < number[:, None]
        in_codebook = codes.clamp(min=0, max=batch.num_codes - 1)
        chosen = guided.gather(-1, in_codebook[..., None])[..., 0]
        is_finite[images] = (chosen.isfinite() | given | ~is_accepted).all(dim=1)
        if self._drafts is None:
            codes = codes.where(is_accepted | given, -1)
        else:
            self._drafts.observe(window, guided)
        if self._needs_log_probs:
            of_codes = self.scheduler.log_probs(guided, in_codebook, window.rule)
            of_codes = of_codes.masked_fill(given, 0.0)
            batch.log_probs[images] = batch.log_probs[images].scatter(1, places, of_codes)
        batch.symbols[images] = symbols.scatter(1, places, codes)
        fed = batch.fed[images]
        # The last code is final without being fed.
        batch.fed[images] = torch.minimum(fed + number, torch.maximum(batch.stop[images] - 1, fed))

    def _commit_tokens(self, window: int, logits: torch.Tensor, is_finite: torch.BoolTensor) -> torch.LongTensor:
        """The next token of each row in text."""
        rows, batch, texts = self._batch.texts, self._batch, self._batch.text_index
        forbidden, places = self._choices(logits.shape[-1])
        logits = logits.masked_fill(forbidden, -torch.inf)[:, None]
        # The next token, or the last one that is fed where more are known than the forward takes.
        position = batch.upload([row.num_fed + min(row.run(), window - 1) + 1 for row in rows])
        is_new = batch.upload([int(row.run() < window) for row in rows]).bool()
        noise = None
        if places.any_random:
            keys, start = batch.keys[texts, 0], batch.answer_start[texts, 0]
            noise = gumbel_noise(keys, position - start, logits.shape[-1])[:, None]
        tokens = self._text_scheduler.choose(logits, noise, places)
        is_finite[texts] = logits.gather(-1, tokens[..., None])[:, 0, 0].isfinite() | ~is_new
        tokens = tokens[:, 0]
        before = batch.symbols[texts, position]
        batch.symbols[texts, position] = (tokens + batch.num_codes).where(is_new, before)
        batch.fed[texts] = position
        return tokens

    def _choices(self, num_ids: int) -> tuple[torch.BoolTensor, SamplingPlaces]:
        """What the rows in text may not choose, and how they choose: the same for many tokens on end."""
        rows = self._batch.texts
        choosers = [(row, row.token_settings(), row.chooses_from) for row in rows]
        if choosers != self._choosers:
            forbidden = torch.ones(len(rows), num_ids, dtype=torch.bool, device=self.device)
            for index, row in enumerate(rows):
                forbidden[index, row.allowed_ids().to(self.device)] = False
            self._choosers = choosers
            self._chosen_by = forbidden, SamplingPlaces([settings for _, settings, _ in choosers], self.device)
        return self._chosen_by

    # What the host learns

    def read(self) -> None:
        """Wait until the rows know of the last step."""
        with self._timed():
            while self._unread:
                self._read_oldest()

    def settle(self) -> None:
        """[`read`], and close the images that turn out to be done."""
        self.read()
        self._finish_rows()

    def _read_oldest(self) -> None:
        status, window = self._unread.popleft()
        values = status.tolist()
        number = len(self.rows)
        advanced = []
        for row, fed, is_finite in zip(self.rows, values, values[number:]):
            if row.is_finished:
                continue
            if not is_finite:
                row.fail(ValueError(NO_LOGITS))
                self._is_stale = True
            elif row in self._batch.images:
                advanced.append(fed - row.num_fed)
                row.num_fed = fed
        for row, token in zip(self._batch.texts, values[2 * number :]):
            run = row.run()
            row.num_fed += min(run + 1, window)
            if run < window and not row.is_finished:
                row.accept_token(token)
                self._is_stale |= row.in_image or row.is_finished
        busy = self._busy_now()
        if self.tuner is not None and advanced and window in self.tuner.windows:
            self.tuner.observe(window, busy - self._busy_until_read, advanced)
        self._busy_until_read = busy

    def _finish_rows(self) -> None:
        for row in self.rows:
            if row.is_image_done():
                self.read()
                row.close_image(self._batch.codes(row).cpu(), self.log_probs(row))
                self._is_stale = True
            self._keep_cache(row)

    def _keep_cache(self, row: Row) -> None:
        if row.is_finished and row.request.keep_cache and row.cache is None and row.error is None:
            row.cache = self._slots.take(row)

    # Who is in the batch

    def _arrange(self) -> None:
        """Let finished rows go and waiting ones come, and give each row the slots that it needs."""
        if not (self._is_stale or self._is_outgrown() or self._can_admit(self.rows)) or self._keeps_finished():
            return
        self.read()
        self._is_stale = self._is_changed = False
        staying = [row for row in self.rows if not row.is_finished]
        while self._can_admit(staying):
            staying.append(self._waiting.popleft())
        self._slots.hold(staying, self._known_ids)
        self._lay_out(staying)

    def _is_outgrown(self) -> bool:
        """Whether a row in text comes to the end of its room."""
        if not self._batch.texts:
            return False
        length = min(self._batch.symbols.shape[1], self._slots.cache.max_length)
        return any(row.num_fed + self._slots.max_window + 1 >= length for row in self._batch.texts)

    def _can_admit(self, rows: Sequence[Row]) -> bool:
        """Whether there is room for the next waiting row beside these."""
        if not self._waiting or self.max_slots is None:
            return bool(self._waiting)
        active = [row for row in rows if not row.is_finished]
        # A row of text may come to an image that is guided.
        needed = sum(1 + row.settings.is_guided for row in [*active, self._waiting[0]])
        return not active or needed <= self.max_slots

    def _keeps_finished(self) -> bool:
        """Whether rows that are finished stay for now, since CUDA graphs are recorded for a number of rows."""
        if not self._is_recorded or self._is_changed or self._waiting or self._batch.texts:
            return False
        return 2 * sum(not row.is_finished for row in self.rows) > len(self.rows)

    def _known_ids(self, row: Row) -> list[int]:
        """Token ids of a row that are final, the context included."""
        return self._batch.final_ids(row) if row in self._batch.images else row.known_ids()

    def _lay_out(self, rows: list[Row]) -> None:
        """Bring the tensors of the batch in line with the rows."""
        batch, slots = self._batch, self._slots
        loaded = [row for row in rows if row not in self.rows or row.in_image is not (row in batch.images)]
        self.rows = rows
        length = max((row.reach for row in rows), default=0) + slots.max_window + 1
        batch.rearrange(rows, round_up(length, LENGTH_STEP))
        for row in loaded:
            batch.load(row)
        batch.locate()
        if self._drafts is not None:
            self._drafts.follow(loaded)
        index = {row: number for number, row in enumerate(rows)}
        slot = {entry: number for number, entry in enumerate(slots.entries)}
        padding = [0] * (slots.num_padded - len(slots))
        self._slot_rows = batch.upload([index[row] for row, _ in slots.entries] + padding)
        self._slot_offsets = batch.upload(slots.offsets[: len(slots)] + padding)[:, None]
        conditional = [slot[row, CONDITIONAL] for row in batch.images]
        unconditional = [slot.get((row, UNCONDITIONAL), slot[row, CONDITIONAL]) for row in batch.images]
        # A slice of the logits spares a copy of them.
        self._conditional, self._unconditional = (
            as_slice(indices) or batch.upload(indices) for indices in (conditional, unconditional)
        )
        guided = [row.is_guided for row in batch.images]
        self._all_guided = all(guided)
        self._guided = batch.upload(guided).bool() if any(guided) else None
        self._needs_log_probs = any(row.request.needs_log_probs for row in batch.images)


def as_slice(indices: Sequence[int]) -> slice | None:
    """The slice that takes the same, of indices that are evenly spaced."""
    if not indices:
        return None
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    is_even = step > 0 and all(later - index == step for index, later in zip(indices, indices[1:]))
    return slice(indices[0], indices[-1] + 1, step) if is_even else None


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code, by `torch.compile(module)` or `module.compile()`."""
    return is_compiled_module(module) or module._compiled_call_impl is not None
