# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The engine: every answer is a row, and a step makes each row go on by at least one token.

A request takes one row of the batch and one row of the KV cache, with guidance two. What a row is doing (text, size
tags, an image of some size) is its own, so sizes and tasks mix, and rows come and go between steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn as nn
from diffusers.utils.torch_utils import is_compiled_module

from .batch import Batch
from .drafts import NeighborLogits, Window, codes_above, random_codes
from .host_copy import HostCopy
from .kv_cache import SlotCache
from .noise import gumbel_noise
from .request import Grammar, Request
from .row import Row
from .scheduling_lumina_mgpt import LuminaMGPTScheduler, SamplerSettings, SamplingPlaces
from .windows import PREFILL_CHUNKS, ForwardShapes, WindowTuner


# Lengths of cached sequences are rounded up to this: attention reads little that is unused, and its inputs seldom
# change their shapes.
LENGTH_STEP = 64

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

    It keeps nothing outside of itself and changes neither the transformer nor the scheduler; several engines may run
    on the same ones, each in its thread.

    Args:
        transformer ([`LuminaMGPTTransformer`]): The model.
        scheduler ([`LuminaMGPTScheduler`]): The sampler.
        grammar ([`Grammar`]): Which token may follow.
        device (`torch.device`): Where the transformer runs.
        num_draft_tokens (`int` or `"auto"`, *optional*), draft_init (`str`, *optional*):
            See [`LuminaMGPTScheduler`], whose configuration is the default.
        max_slots (`int`, *optional*):
            Most rows of the KV cache; requests wait until there is room. By default all are sampled at once.
        cache ([`SlotCache`], *optional*): The `cache` of an engine that has ended, to be used again if it fits.
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
        cache: SlotCache | None = None,
    ) -> None:
        config = scheduler.config
        self.transformer = transformer
        self.scheduler = scheduler
        self.grammar = grammar
        self.device = device
        self.num_draft_tokens = config.num_draft_tokens if num_draft_tokens is None else num_draft_tokens
        self.draft_init = config.draft_init if draft_init is None else draft_init
        self.max_slots = max_slots
        self.cache = cache
        self.rows: list[Row] = []
        self._waiting: deque[Row] = deque()
        # Whose tokens each row of the KV cache holds: (row, 0), or (row, 1) of its unconditional branch.
        self._slots: list[tuple[Row, int]] = []
        self._batch = Batch(grammar.vocabulary, transformer.config.vocab_size, device)
        self._text_scheduler = LuminaMGPTScheduler()
        self._neighbors: NeighborLogits | None = None
        self._image_rows: list[Row] = []
        self._text_rows: list[Row] = []
        self._is_stale = False
        self._is_changed = False
        self._length = 0
        # Steps that the host does not know the result of, each with its window.
        self._unread: deque[tuple[HostCopy, int]] = deque()
        self._started = self._busy = self._busy_until_read = 0.0
        self._drafted: dict[Row, int] = {}
        self._views: dict[int, list[tuple[int, int, SlotCache]]] = {}
        self._is_compiled = is_compiled(transformer)
        self._length_step = LENGTH_STEP
        if self._is_compiled:
            self._length_step = COMPILED_LENGTH_STEP.get(device.type, LENGTH_STEP)
        self.shapes = ForwardShapes.for_device(device, transformer.dtype, config.batch_invariant)
        self._tuner = None
        if self.num_draft_tokens == "auto":
            # A window of one place is other code than longer ones, once compiled.
            least = 2 if self._is_compiled else 1
            sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if least <= size <= self.shapes.max_window]
            self._tuner = WindowTuner(sizes)
            self._max_window = sizes[-1]
        else:
            self._max_window = min(max(self.num_draft_tokens, MAX_RUN) + 1, self.shapes.max_window)
        first_code, stop_code = grammar.vocabulary.code_range
        self._logits_range = (first_code, stop_code)
        in_range = grammar.vocabulary.code_ids.cpu() - first_code
        # Where the range holds the codes in order and nothing else, the logits are already those of the codebook.
        is_identity = torch.equal(in_range, torch.arange(stop_code - first_code, device="cpu"))
        self._codebook_order = None if is_identity else in_range.to(device)

    # Requests

    def submit(self, request: Request) -> Row:
        """Take a request. Its row, which is returned, is sampled from the next step on that has room for it."""
        row = Row(request, self.grammar)
        self._wait(row)
        return row

    def _wait(self, row: Row) -> None:
        if row.in_image and row.image.stop <= row.image.first:
            row.close_image(row.image.given)  # nothing of it is to be sampled
        else:
            self._waiting.append(row)

    @property
    def cache_kind(self) -> tuple:
        """What a KV cache has to have in common with that of this engine to go on from it."""
        autocast = torch.get_autocast_dtype(self.device.type) if torch.is_autocast_enabled(self.device.type) else None
        return (self.transformer.dtype, self.device, autocast)

    @property
    def is_idle(self) -> bool:
        """Whether all requests are finished."""
        return not self._waiting and all(row.is_finished for row in self.rows)

    def codes(self, row: Row) -> torch.LongTensor:
        """Codes `(rows, columns)` of the image that a row is in; -1 where none is final yet."""
        if not row.in_image:
            return row.codes.to(self.device)
        return self._batch.codes(row) if row in self._image_rows else row.image.given.to(self.device)

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
        columns = codes.shape[1]
        row.reopen(codes.cpu(), first_change + first_change // columns)
        if row in self.rows:
            self._batch.load(row)
            self._batch.locate()
            self._forget_drafts(row)
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
        if row.in_image and row in self._batch.rows:
            row.stop_here(self._batch.codes(row).cpu(), self._log_probs(row))
        else:
            row.stop_here(row.image.given if row.in_image else None)
        if row in self._waiting:
            self._waiting.remove(row)
        else:
            self._keep_cache(row)
        self._is_stale = True

    # A step

    @torch.no_grad()
    def step(self) -> None:
        """Run the transformer once and make at least one more token of every row final."""
        with evaluating(self.transformer):
            self._arrange()
            if not self.rows:
                return
            self._started = time.perf_counter()
            window = self._window()
            self._fill_drafts(window)
            self._commit(window, *self._forward(window))
            self._busy += time.perf_counter() - self._started
            self._finish_rows()

    def _window(self) -> int:
        """How many places the next forward takes."""
        run = min(max(row.run() for row in self.rows if not row.is_finished), MAX_RUN)
        if self.shapes.window is not None:
            return self.shapes.window
        window = 1
        if self._tuner is not None and self._image_rows:
            window = self._tuner.choose(len(self._slots))
        elif self._image_rows:
            window = self.num_draft_tokens + 1
        return min(max(window, run + 1), self.shapes.max_window)

    @property
    def _has_drafts(self) -> bool:
        return self.num_draft_tokens != 0

    def _forward(self, window: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.LongTensor]:
        """Logits of the codes for all rows of the cache, those of text for the rows in text, and what was fed."""
        ids, positions = self._batch.window_ids(window)
        slot_ids, slot_positions = ids[self._slot_rows], positions[self._slot_rows] - self._slot_offsets
        unread = sum(size for _, size in self._unread)
        reach = max(row.num_fed - offset for (row, _), offset in zip(self._slots, self._offsets)) + unread + window
        length = min(round_up(reach, self._length_step), self.cache.max_length - 1)
        logits, token_logits = [], []
        for start, stop, view in self._groups(window):
            view.limit(length, self.device)
            places = [
                (slot - start, min(row.run(), window - 1))
                for slot, (row, branch) in enumerate(self._slots[start:stop], start)
                if branch == 0 and row in self._text_rows
            ]
            text_places = tuple(self._upload(column) for column in zip(*places)) if places else None
            output = self.transformer(
                input_ids=slot_ids[start:stop],
                position_ids=slot_positions[start:stop],
                past_key_values=view,
                logits_range=self._logits_range,
                text_places=text_places,
            )
            logits.append(output.logits.float())
            if places:
                token_logits.append(output.text_logits.float())
        codes = torch.cat(logits) if len(logits) > 1 else logits[0]
        if self._codebook_order is not None:
            codes = codes[..., self._codebook_order]
        return codes, torch.cat(token_logits) if token_logits else None, positions

    def _commit(
        self, window: int, logits: torch.Tensor, token_logits: torch.Tensor | None, positions: torch.LongTensor
    ) -> None:
        """Sample all rows and go on by what is accepted."""
        is_finite = torch.ones(len(self.rows), dtype=torch.bool, device=self.device)
        if self._image_rows:
            self._commit_codes(logits, positions + 1, is_finite)
        status = [self._batch.fed, is_finite]
        if token_logits is not None:
            status.append(self._commit_tokens(window, token_logits, is_finite))
        self._unread.append((HostCopy(torch.cat([part.long() for part in status])), window))
        lag = 0 if self._text_rows else FRONTIER_LAG.get(self.device.type, 0)
        while len(self._unread) > lag:
            self._read_oldest()

    def _commit_codes(self, logits: torch.Tensor, positions: torch.LongTensor, is_finite: torch.BoolTensor) -> None:
        batch, images = self._batch, self._image_index
        window = self._open(positions[images])
        conditional = logits[self._conditional]
        guided = conditional
        if self._guided is not None:
            guided = self.scheduler.guide(conditional, logits[self._unconditional], window.rule)
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
        if self._neighbors is not None:
            self._neighbors.observe(window, guided)
        if not self._has_drafts:
            codes = codes.where(is_accepted | given, -1)
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
        rows, batch = self._text_rows, self._batch
        allowed = torch.zeros(len(rows), logits.shape[-1], dtype=torch.bool, device=self.device)
        for index, row in enumerate(rows):
            allowed[index, row.allowed_ids().to(self.device)] = True
        logits = logits.masked_fill(~allowed, -torch.inf)[:, None]
        places = SamplingPlaces([row.token_settings() for row in rows], self.device)
        # The next token, or the last one that is fed where more are known than the forward takes.
        position = self._upload([row.num_fed + min(row.run(), window - 1) + 1 for row in rows])
        is_new = self._upload([int(row.run() < window) for row in rows]).bool()
        noise = None
        if places.any_random:
            keys, start = batch.keys[self._text_index, 0], batch.answer_start[self._text_index, 0]
            noise = gumbel_noise(keys, position - start, logits.shape[-1])[:, None]
        tokens = self._text_scheduler.choose(logits, noise, places)
        is_finite[self._text_index] = logits.gather(-1, tokens[..., None])[:, 0, 0].isfinite() | ~is_new
        tokens = tokens[:, 0]
        before = batch.symbols[self._text_index, position]
        batch.symbols[self._text_index, position] = (tokens + batch.num_codes).where(is_new, before)
        batch.fed[self._text_index] = position
        return tokens

    # What the host learns

    def read(self) -> None:
        """Wait until the rows know of the last step."""
        while self._unread:
            self._read_oldest()

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
            elif row.in_image:
                advanced.append(fed - row.num_fed)
                row.num_fed = fed
        for row, token in zip(self._text_rows, values[2 * number :]):
            run = row.run()
            row.num_fed += min(run + 1, window)
            if run < window and not row.is_finished:
                row.accept_token(token)
                self._is_stale |= row.in_image or row.is_finished
        busy = self._busy + time.perf_counter() - self._started
        if self._tuner is not None and advanced and window in self._tuner.windows:
            self._tuner.observe(window, busy - self._busy_until_read, advanced)
        self._busy_until_read = busy

    def _finish_rows(self) -> None:
        for row in self.rows:
            if row.is_image_done():
                self.read()
                row.close_image(self._batch.codes(row).cpu(), self._log_probs(row))
                self._is_stale = True
            self._keep_cache(row)

    def _keep_cache(self, row: Row) -> None:
        if row.is_finished and row.request.keep_cache and row.cache is None and row.error is None:
            row.cache = self.cache.take_row(self._slots.index((row, 0)), row.num_fed)

    def _log_probs(self, row: Row) -> torch.Tensor | None:
        return self._batch.image_log_probs(row).cpu() if row.request.needs_log_probs else None

    # Drafts

    def _open(self, positions: torch.LongTensor) -> Window:
        """The places of images at these positions, with their noise."""
        batch, images = self._batch, self._image_index
        place = positions - batch.first[images]
        noise = None
        if self._places.any_random:
            index = positions - batch.answer_start[images]
            noise = gumbel_noise(batch.keys[images].expand_as(index), index, batch.num_codes)
        stride = batch.stride[images]
        return Window(place, stride, noise, self._places.at(place - place // stride))

    def _fill_drafts(self, window: int) -> None:
        """Guess the codes of the places that come into the window for the first time."""
        if not self._has_drafts or not self._image_rows:
            return
        batch, images = self._batch, self._image_index
        number = self._num_new(window)
        positions = batch.fed[images][:, None] + torch.arange(window - number + 1, window + 1, device=self.device)
        new = self._open(positions)
        symbols = batch.symbols[images]
        drafts = symbols.gather(1, positions)
        if self.draft_init == "logits":
            guesses = self._neighbors.guess(new)
            drafts = drafts.where(drafts >= 0, guesses)
        elif self.draft_init == "above":
            first = batch.first[images]
            span = first + torch.arange(symbols.shape[1], device=self.device)
            image = symbols.gather(1, span.clamp(max=symbols.shape[1] - 1))
            drafts = drafts.where(drafts >= 0, codes_above(new, image))
        drafts = drafts.where(drafts >= 0, random_codes(new, batch.num_codes))
        batch.symbols[images] = symbols.scatter(1, positions, drafts)

    def _num_new(self, window: int) -> int:
        """How many places at the end of the window may be new in some image."""
        if self._unread:
            # How far the last steps went is not known on the host yet.
            return window
        number = max(row.num_fed + window - self._drafted.get(row, row.num_fed) for row in self._image_rows)
        for row in self._image_rows:
            self._drafted[row] = row.num_fed + window
        return min(max(number, 1), window)

    def _forget_drafts(self, row: Row) -> None:
        self._drafted.pop(row, None)
        if self._neighbors is not None:
            kept = [-1 if other is row else index for index, other in enumerate(self._image_rows)]
            self._neighbors.take(self._upload(kept), self._batch.greatest_stride)

    # Who is in the batch

    def _arrange(self) -> None:
        """Let finished rows go and waiting ones come, and give each row the slots that it needs."""
        outgrown = any(row.num_fed + self._max_window + 1 >= self._length for row in self._text_rows)
        if not (self._is_stale or outgrown or self._can_admit()) or self._keeps_finished():
            return
        self.read()
        self._is_stale = self._is_changed = False
        staying = [row for row in self.rows if not row.is_finished]
        while self._can_admit(staying):
            staying.append(self._waiting.popleft())
        known = {row: self._known_ids(row) for row in staying}
        wanted = [(row, branch) for row in staying for branch in ((0, 1) if row.is_guided else (0,))]
        self._free_slots(wanted)
        if wanted:
            self._prefill([slot for slot in wanted if slot not in self._slots], known)
        loaded = [row for row in staying if row not in self.rows or row.in_image is not (row in self._image_rows)]
        self.rows = staying
        self._lay_out(loaded)

    def _can_admit(self, rows: Sequence[Row] | None = None) -> bool:
        """Whether there is room for the next waiting row beside these."""
        if not self._waiting or self.max_slots is None:
            return bool(self._waiting)
        active = [row for row in (self.rows if rows is None else rows) if not row.is_finished]
        # A row of text may come to an image that is guided.
        needed = sum(1 + row.settings.is_guided for row in [*active, self._waiting[0]])
        return not active or needed <= self.max_slots

    def _keeps_finished(self) -> bool:
        """Whether rows that are finished stay for now, since CUDA graphs are recorded for a number of rows."""
        if not self._is_compiled or self.device.type != "cuda" or self._waiting or self._text_rows:
            return False
        return 2 * sum(not row.is_finished for row in self.rows) > len(self.rows) and not self._is_changed

    def _known_ids(self, row: Row) -> list[int]:
        """Token ids of a row that are final, the context included."""
        if row in self.rows and row.in_image and row in self._image_rows:
            return self._batch.final_ids(row)
        return row.known_ids()

    def _free_slots(self, wanted: Sequence[tuple[Row, int]]) -> None:
        """Give up the slots that are not wanted; the last ones move to where there is a hole."""
        for index in reversed(range(len(self._slots))):
            if self._slots[index] in wanted:
                continue
            last = self._slots.pop()
            if index < len(self._slots):
                row, branch = last
                self.cache.copy_row(len(self._slots), index, row.num_fed - self._offset(row, branch) + 1)
                self._slots[index] = last

    @staticmethod
    def _offset(row: Row, branch: int) -> int:
        """Positions of the row that its unconditional branch does not have."""
        if branch == 0:
            return 0
        return row.image.first - 3 - len(row.request.unconditional_context)

    def _prefill(self, new: list[tuple[Row, int]], known: dict[Row, list[int]]) -> None:
        """Feed what new rows of the cache have to hold before their first window, equal beginnings once."""
        feeds: dict[tuple[Row, int], tuple[int, list[int]]] = {}
        for row, branch in new:
            ids, start = known[row], 0
            if branch == 1:
                ids = [*row.request.unconditional_context, *ids[row.image.first - 3 :]]
            else:
                row.num_fed = len(ids) - 1
                start = row.request.num_cached
            feeds[row, branch] = (start, ids[start:-1])
        first_of: dict[tuple, tuple[Row, int]] = {}
        for slot, (start, ids) in feeds.items():
            first_of.setdefault((tuple(ids), slot if start else None), slot)
        distinct = list(first_of.values())
        copies = [slot for slot in new if slot not in distinct]
        self._slots += distinct + copies
        self._allocate()
        for slot in distinct:
            request = slot[0].request
            if slot[1] == 0 and request.cache is not None:
                self.cache.put_row(self._slots.index(slot), request.cache, request.num_cached)
                request.cache, request.num_cached = None, 0
        self._feed([(self._slots.index(slot), *feeds[slot]) for slot in distinct if feeds[slot][1]])
        for slot in copies:
            ids = feeds[slot][1]
            source = first_of[tuple(ids), None]
            self.cache.copy_row(self._slots.index(source), self._slots.index(slot), len(ids))

    def _allocate(self) -> None:
        """Have a cache with room for all slots."""
        needed = max(
            slots_needed(row.reach - self._offset(row, branch), self._max_window, self._length_step)
            for row, branch in self._slots
        )
        rows = round_up(len(self._slots), self.shapes.num_rows(self.shapes.window) if self.shapes.window else 1)
        if self.cache is None or (not self.rows and not self.cache.fits(rows, needed)):
            self.cache = None  # before there is another one
            self.cache = SlotCache(self.transformer.config.num_hidden_layers, needed, rows)
        elif not self.rows:
            self.cache.clear()
        elif needed > self.cache.max_length or rows > self.cache.num_rows:
            # A quarter more than needed, so that growing step by step copies little.
            self.cache.grow(rows, round_up(needed + needed // 4, LENGTH_STEP) + 1)

    def _feed(self, feeds: list[tuple[int, int, list[int]]]) -> None:
        """Run the transformer over tokens of rows `(slot, start, ids)`, for the cache alone."""
        if not feeds:
            return
        if not self.shapes.is_canonical:
            length = max(len(ids) for _, _, ids in feeds)
            self._feed_chunk(feeds, round_up(length, LENGTH_STEP))
            return
        # Each row by itself, in chunks that follow from its own length alone.
        for slot, start, ids in feeds:
            while ids:
                size = next((size for size in PREFILL_CHUNKS if size <= len(ids)), PREFILL_CHUNKS[-1])
                self._feed_chunk([(slot, start, ids[:size])], size)
                start, ids = start + size, ids[size:]

    def _feed_chunk(self, feeds: list[tuple[int, int, list[int]]], size: int) -> None:
        ids = torch.zeros(len(feeds), size, dtype=torch.long, device="cpu")
        for index, (_, _, own) in enumerate(feeds):
            ids[index, : len(own)] = torch.tensor(own, device="cpu")
        starts = torch.tensor([start for _, start, _ in feeds], device="cpu")
        # What pads a row goes to slots that are written again before they are seen, or to the last, never seen.
        positions = (starts[:, None] + torch.arange(size, device="cpu")).clamp(max=self.cache.max_length - 1)
        slots = [slot for slot, _, _ in feeds]
        for start, stop in runs_of(slots):
            view = self.cache.rows(slots[start], slots[stop - 1] + 1)
            reach = max(len(own) + begin for _, begin, own in feeds[start:stop])
            view.limit(min(round_up(reach, LENGTH_STEP), self.cache.max_length), self.device)
            # Compiled, it would be compiled anew for every length, to run once.
            eager_call(self.transformer)(
                input_ids=ids[start:stop].to(self.device),
                position_ids=positions[start:stop].to(self.device),
                past_key_values=view,
                logits_to_keep=1,
                logits_range=self._logits_range,
            )

    def _lay_out(self, loaded: Sequence[Row]) -> None:
        """Bring the tensors of the batch in line with the rows."""
        if not self.rows:
            self._batch.rearrange([], 0)
            self._image_rows, self._text_rows = [], []
            return
        old_images = self._image_rows
        length = max(row.reach for row in self.rows) + self._max_window + 1
        self._batch.rearrange(self.rows, round_up(length, LENGTH_STEP))
        self._length = min(self._batch.symbols.shape[1], self.cache.max_length)
        for row in loaded:
            self._batch.load(row)
            self._drafted.pop(row, None)
        self._batch.locate()
        self._image_rows = [row for row in self.rows if row.in_image]
        self._text_rows = [row for row in self.rows if not row.in_image]
        index = {row: number for number, row in enumerate(self.rows)}
        slot = {key: number for number, key in enumerate(self._slots)}
        self._text_index = self._upload([index[row] for row in self._text_rows])
        images = [index[row] for row in self._image_rows]
        self._image_index = slice(None) if len(images) == len(self.rows) else self._upload(images)
        self._offsets = [self._offset(row, branch) for row, branch in self._slots]
        padding = [0] * (-len(self._slots) % (self.shapes.num_rows(self.shapes.window) if self.shapes.window else 1))
        self._slot_rows = self._upload([index[row] for row, _ in self._slots] + padding)
        self._slot_offsets = self._upload(self._offsets + padding)[:, None]
        self._conditional = self._upload([slot[row, 0] for row in self._image_rows])
        self._unconditional = self._upload([slot.get((row, 1), slot[row, 0]) for row in self._image_rows])
        guided = [row.is_guided for row in self._image_rows]
        self._all_guided = all(guided)
        self._guided = self._upload([int(one) for one in guided]).bool() if any(guided) else None
        self._needs_log_probs = any(row.request.needs_log_probs for row in self._image_rows)
        self._places = SamplingPlaces([row.settings for row in self._image_rows], self.device)
        self._places.num_columns = self._batch.stride[self._image_index] - 1
        self._places.num_codes = self._batch.num_image_codes[self._image_index]
        self._drafted = {row: number for row, number in self._drafted.items() if row in index}
        self._views = {}
        if self._has_drafts and self.draft_init == "logits" and self._image_rows:
            stride = self._batch.greatest_stride
            if self._neighbors is None:
                self._neighbors = NeighborLogits(
                    self.scheduler, len(self._image_rows), stride, self._batch.num_codes, self.device
                )
            else:
                kept = [
                    old_images.index(row) if row in old_images and row not in loaded else -1
                    for row in self._image_rows
                ]
                self._neighbors.take(self._upload(kept), stride)

    def _groups(self, window: int) -> Iterator[tuple[int, int, SlotCache]]:
        """The rows of the cache that each forward takes, and a view of them."""
        number = len(self._slot_rows)  # with those that pad it
        size = min(self.shapes.num_rows(window) or number, number)
        if size not in self._views:
            self._views[size] = [
                (start, min(start + size, number), self.cache.rows(start, min(start + size, number)))
                for start in range(0, number, size)
            ]
        return iter(self._views[size])

    def _upload(self, values: Sequence[int]) -> torch.LongTensor:
        return torch.tensor(list(values), dtype=torch.long, device="cpu").to(self.device)


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code, by `torch.compile(module)` or `module.compile()`."""
    return is_compiled_module(module) or module._compiled_call_impl is not None


def eager_call(module: nn.Module) -> Callable:
    """What calls a module without its compiled code."""
    return getattr(module, "_orig_mod", module)._call_impl


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout and gradient checkpointing off, as in training scripts that draw an image on the way."""
    training = [part for part in module.modules() if part.training] if module.training else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def runs_of(values: Sequence[int]) -> Iterator[tuple[int, int]]:
    """`(start, stop)` of the stretches of values that follow one another."""
    start = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[index - 1] + 1:
            yield start, index
            start = index


def slots_needed(length: int, max_window: int, step: int = LENGTH_STEP) -> int:
    """Slots of a cache row for `length` tokens, and a window past its end."""
    # Reading all of a cache is other code than reading a part of it, once compiled. With a slot that is never read it
    # is always a part.
    return round_up(length + max_window + 1, step) + 1


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step
