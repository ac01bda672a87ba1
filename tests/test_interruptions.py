# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C anywhere in a call leaves the pipeline, its open streams and its conversations as before."""

import copy
import os
from collections.abc import Callable

import pytest
import torch
from conftest import copy_of
from interruptions import Interrupter, places_of
from omni import chat_from, img2img_from
from torch.overrides import _get_current_function_mode_stack

from lumina_mgpt_diffusers import LuminaMGPTConversation
from lumina_mgpt_diffusers.lumina_mgpt import evaluation
from lumina_mgpt_diffusers.lumina_mgpt.calls import CURRENT_CALL


IMAGE = {"prompt": "a cat", "height": 32, "width": 64, "guidance_scale": 3.0, "num_draft_tokens": "auto"}
EDIT = {"prompt": "Redder.", "image": torch.zeros(2, 4, dtype=torch.long), "num_draft_tokens": "auto"}
TURN = {"messages": "Generate an image of 64x32", "height": 64, "width": 32, "max_new_tokens": 12}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_of(pipe, **kwargs) -> torch.Tensor:
    return pipe(**IMAGE, generator=seeded(0), output_type="latent", **kwargs).images


def changes_nothing(pipe, step, timestep, kwargs):
    return kwargs


class ImageCase:
    """A call for an image."""

    file = "pipeline_images.py"
    """Where its state is, for a short test."""

    def __init__(self, pipe) -> None:
        self.pipe = pipe
        self.expected = image_of(pipe)

    def start(self) -> Callable[[], object]:
        return lambda: self.pipe(**IMAGE, generator=seeded(2), callback_on_step_end=changes_nothing)

    def check(self) -> None:
        assert torch.equal(image_of(self.pipe), self.expected)


class StreamCase(ImageCase):
    """An open stream, that is advanced, beside another one."""

    def start(self):
        self.other = self.pipe.stream(**IMAGE, generator=seeded(0), output_type="latent")
        next(self.other)
        stream = self.pipe.stream(**IMAGE, generator=seeded(2))
        next(stream)
        return lambda: [step.preview() for step in stream]

    def check(self):
        *_, last = self.other
        assert torch.equal(last.codes, self.expected)
        super().check()


class EditCase(ImageCase):
    """A call from image to image."""

    def __init__(self, pipe):
        super().__init__(pipe)
        self.editor = img2img_from(pipe)

    def start(self):
        return lambda: self.editor(**EDIT, generator=seeded(2))


class TrainingCase(ImageCase):
    """A call of a model that is being trained, but for one layer."""

    file = "evaluation.py"

    def __init__(self, pipe):
        pipe = copy_of(pipe)
        pipe.transformer.train()
        pipe.transformer.model.layers[0].eval()
        before = modes(pipe)
        super().__init__(pipe)
        assert modes(pipe) == before


class TurnCase(ImageCase):
    """A turn of a conversation."""

    file = "conversation.py"

    def __init__(self, pipe):
        super().__init__(pipe)
        self.chat = chat_from(pipe, num_draft_tokens="auto")
        self.begun = LuminaMGPTConversation(seeded(0))
        self.chat("Hello, who are you?", conversation=self.begun, max_new_tokens=3)
        ended = copy.deepcopy(self.begun)
        self.answer(ended)
        # What is next without the turn, and with it.
        self.outcomes = [(self.state(one), self.next_turn(one)) for one in (copy.deepcopy(self.begun), ended)]

    def answer(self, conversation: LuminaMGPTConversation) -> None:
        self.chat(**TURN, conversation=conversation)

    @staticmethod
    def state(conversation: LuminaMGPTConversation) -> tuple:
        generator = conversation.generator.get_state().tolist()
        return list(conversation.token_ids), conversation.finish_reason, generator

    def next_turn(self, conversation: LuminaMGPTConversation) -> tuple:
        self.chat("And now?", conversation=conversation, max_new_tokens=3)
        return self.state(conversation)

    def start(self):
        self.conversation = copy.deepcopy(self.begun)
        return lambda: self.answer(self.conversation)

    def check(self):
        state = self.state(self.conversation)
        # All of the turn or nothing.
        expected = [following for before, following in self.outcomes if before == state]
        assert expected and self.next_turn(self.conversation) == expected[0]
        super().check()


class StreamedTurnCase(TurnCase):
    """A turn of a conversation that is read while it is sampled, with a generator of its own."""

    def answer(self, conversation):
        list(self.chat.stream(**TURN, conversation=conversation, generator=seeded(4)))


# An interruption may come in the end of a generator, where Python has nothing to raise it to and says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CASES = [ImageCase, StreamCase, EditCase, TrainingCase, TurnCase, StreamedTurnCase]


def modes(pipe) -> list[bool]:
    return [part.training for model in (pipe.transformer, pipe.vqvae) for part in model.modules()]


def interrupt(case: ImageCase, place: tuple) -> bool:
    pipe = case.pipe
    before = modes(pipe), dict(pipe.scheduler.config), torch.get_rng_state().tolist()
    interrupter = Interrupter(place)
    was_interrupted = interrupter.run(case.start())
    torch.set_grad_enabled(True)  # `torch.no_grad` itself leaves it off where it is interrupted in its end
    assert (modes(pipe), dict(pipe.scheduler.config), torch.get_rng_state().tolist()) == before
    assert not evaluation._sampled and CURRENT_CALL.get() is None and not _get_current_function_mode_stack()
    case.check()
    return was_interrupted


@pytest.mark.parametrize("kind", CASES)
def test_an_interruption_leaves_all_as_before(trained_pipe, kind):
    case = kind(trained_pipe)
    places = places_of(case.start(), seed=0, number=6, file=case.file)
    assert sum(interrupt(case, place) for place in places) > 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_an_interruption_at_any_line_leaves_all_as_before(trained_pipe, kind):
    case = kind(trained_pipe)
    number, seed = (os.environ.get(f"LUMINA_MGPT_TEST_{name}") for name in ("INTERRUPTIONS", "SEED"))
    places = places_of(case.start(), int(seed or 0), number and int(number))
    assert places
    failures = {}
    for place in places:
        try:
            interrupt(case, place)
        except (AssertionError, ValueError) as error:
            failures[place] = str(error).partition("\n")[0]
            case = kind(copy_of(trained_pipe))
    assert not failures
