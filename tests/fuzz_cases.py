# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is fuzzed: for each kind a function that draws one case."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from conftest import BASE_SIZE, CHECKPOINT, VQGAN
from fuzz_values import Values
from safetensors.torch import load_file, save_file

from lumina_mgpt_diffusers import (
    LuminaMGPTChatPipeline,
    LuminaMGPTConversation,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTPipeline,
    LuminaMGPTScheduler,
)
from lumina_mgpt_diffusers.lumina_mgpt.prompts import encode_text
from lumina_mgpt_diffusers.lumina_mgpt.tasks import Task


@dataclass
class Case:
    """
    Something to call.

    Args:
        shown (`str`): What it is.
        call (`Callable`): Gives the result.
        names (`Sequence[str]`): A refusal names one of these.
        is_right (`Callable[[object], bool]`): Whether a result is right.
        has_to_be (`str`, *optional*): `"refused"` or `"right"`, where only one of them will do.
        may_run (`bool`, defaults to `False`): Whether models have to run for it to be seen what is wrong.
        errors (`tuple[type, ...]`): What a refusal is.
    """

    shown: str
    call: Callable[[], object]
    names: Sequence[str]
    is_right: Callable[[object], bool]
    has_to_be: str | None = None
    may_run: bool = False
    errors: tuple[type, ...] = (ValueError,)


class Models:
    """The pipelines over the components of one, and how often its models were run."""

    def __init__(self, pipe: LuminaMGPTPipeline) -> None:
        components = {**pipe.components, "scheduler": LuminaMGPTScheduler(resolution=BASE_SIZE, num_draft_tokens=0)}
        self.text, self.edit, self.chat = (
            kind(**components) for kind in (LuminaMGPTPipeline, LuminaMGPTImg2ImgPipeline, LuminaMGPTChatPipeline)
        )
        for one in (self.text, self.edit, self.chat):
            one.set_progress_bar_config(disable=True)
        self.transformer, self.tokenizer = pipe.transformer, pipe.tokenizer
        self.vocabulary = pipe.image_vocabulary
        self.num_forwards = 0
        parts = (pipe.transformer, pipe.vqvae.encoder, pipe.vqvae.decoder)
        self._hooks = [part.register_forward_pre_hook(self._count) for part in parts]
        self._good = good_image(self.text)

    def _count(self, *_: object) -> None:
        self.num_forwards += 1

    def are_good(self) -> bool:
        """Whether a good call still gives its image."""
        return torch.equal(good_image(self.text), self._good)

    def __enter__(self) -> "Models":
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def are_codes(self, images: Iterable) -> bool:
        images = list(images)
        return bool(images) and all(
            one.dtype == torch.long and one.min() >= 0 and one.max() < self.vocabulary.num_codes for one in images
        )

    def is_answer(self, output: object) -> bool:
        """Whether an answer is text and images with codes, and nothing that may not stand in it."""
        texts = [part.text for part in output.parts if hasattr(part, "text")]
        images = [part for part in output.parts if not hasattr(part, "text")]
        return all(isinstance(text, str) for text in texts) and all(
            one.codes is None or (one.codes >= -1).all() and (one.codes < self.vocabulary.num_codes).all()
            for one in images
        )


def brief(value: object) -> str:
    try:
        return f"{value!r:.300}"
    except ValueError:  # Python writes no longer integers out
        return "something with a huge integer"


def good_image(pipe: LuminaMGPTPipeline) -> torch.Tensor:
    return pipe("a cat", **small(guidance_scale=1)).images


def small(**kwargs: object) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {"height": 32, "width": 32, "generator": generator, "output_type": "latent", **kwargs}


# Token streams


def token_streams(models: Models, values: Values) -> Case:
    vocabulary, random = models.vocabulary, values.random
    columns = 2 * random.randint(1, 3)
    codes = torch.tensor([[random.randrange(8192) for _ in range(columns)] for _ in range(4)])
    ids: object = vocabulary.to_tokens(codes).tolist()
    control = [vocabulary.start_id, vocabulary.end_id, vocabulary.row_end_id, *vocabulary.size_tag_ids[:5]]
    for _ in range(random.randint(0, 2)):
        place, new = random.randrange(len(ids)), values.pick([random.randrange(70000), *control, -1, 2**63 - 1])
        kind = random.random()
        if kind < 0.5:
            ids[place] = new
        elif kind < 0.7:
            del ids[place : place + random.randint(1, 3)]
        else:
            ids.insert(place, new)
        ids = ids or [new]
    has_to_be = "right" if is_image(vocabulary, ids) else "refused"
    if random.random() < 0.2:
        ids, has_to_be = values.pick([values.value, values.tensor, values.number])(), None
    names = ("token_ids", "Index", "tokens")
    return Case(
        f"to_codes({brief(ids)})",
        lambda: vocabulary.to_codes(ids),
        names,
        lambda codes: vocabulary.to_tokens(codes).tolist() == torch.as_tensor(ids).tolist(),
        has_to_be,
    )


def is_image(vocabulary, ids: list[int]) -> bool:
    """Whether token ids are one whole image, by the words of the definition."""
    tags, code_ids = vocabulary.size_tag_ids, set(vocabulary.code_ids.tolist())
    if len(ids) < 4 or not {ids[1], ids[2]} <= set(tags):
        return False
    rows, columns = (2 * tags.index(id) + 2 for id in ids[1:3])
    kinds = "".join("c" if id in code_ids else "r" if id == vocabulary.row_end_id else "x" for id in ids[3:-1])
    return (ids[0], ids[-1], kinds) == (vocabulary.start_id, vocabulary.end_id, ("c" * columns + "r") * rows)


def prompt_ids(models: Models, values: Values) -> Case:
    """Prompts as token ids, with masks."""
    random, length = values.random, values.random.randint(1, 6)
    low, high = values.pick([(0, 65536), (0, 65536), (-2, 65536), (65000, 66000)])
    rows = [[random.randrange(low, high) for _ in range(length)] for _ in range(random.randint(1, 2))]
    ids = torch.tensor(rows).to(values.pick([torch.int64, torch.int64, torch.int32, torch.float32]))
    mask = torch.tensor([[random.randint(0, 1) for _ in row] for row in rows])
    mask = values.pick([mask, mask.bool(), mask.float(), None, mask[:, 1:], mask - 1])
    if random.random() < 0.2:
        ids, mask = values.pick([(values.tensor(), mask), (ids, values.tensor()), (values.value(), None)])
    kind = values.pick(["prompt", "negative_prompt"])
    own = {f"{kind}_token_ids": ids, f"{kind}_attention_mask": mask}
    if kind == "negative_prompt":
        own |= {"prompt": "a cat" if random.random() < 0.5 else ["a", "b"][: len(rows)], "guidance_scale": 2}

    def is_right(output: object) -> bool:
        is_token = torch.ones_like(ids) if mask is None else mask
        kept = [row[keep.bool()].long()[None] for row, keep in zip(ids, is_token)]
        other = own | {f"{kind}_token_ids": kept[0], f"{kind}_attention_mask": None}
        if kind == "negative_prompt":
            other["prompt"] = "a cat" if own["prompt"] == "a cat" else own["prompt"][0]
        return torch.equal(models.text(**small(**other)).images[0], output.images[0])

    return Case(f"{brief(own)}", lambda: models.text(**small(**own)), tuple(own) + ("prompts",), is_right)


# Hostile logits


def hostile_logits(models: Models, values: Values) -> Case:
    """A model whose logits at every position are those of a table, some of them no numbers."""
    random, size = values.random, models.transformer.config.vocab_size
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    table = torch.randn(7, size, generator=generator)
    nan, inf = float("nan"), float("inf")
    for _ in range(random.randint(0, 4)):
        row = table[random.randrange(len(table))]
        stop = values.pick([1, 3, 100, size])
        places = torch.randperm(size, generator=generator)[:stop]
        row[places] = values.pick([nan, inf, -inf, 3e38, -3e38, 1e-45, 0.0])
    is_greedy, is_guided, in_text = (random.random() < 0.5 for _ in range(3))
    settings = {"top_k": 1} if is_greedy else {"top_k": values.pick([0, 5, 2000]), "top_p": values.pick([1.0, 0.5])}
    if not is_greedy:
        settings |= {"min_p": values.pick([0.0, 0.3]), "temperature": values.pick([1.0, 1e-19, 1e30])}
    settings |= {"guidance_scale": 3.0 if is_guided else 1.0, "num_draft_tokens": values.pick([0, 3, "auto"])}
    in_image = table[:, slice(*models.vocabulary.code_range)]
    at: list[int] = []

    def replace(module: object, args: tuple, kwargs: dict, output: object) -> object:
        positions = kwargs["position_ids"]
        at.append(int(positions[0, 0]))
        output.logits = in_image[positions % len(table)][:, -output.logits.shape[1] :]
        if output.text_logits is not None:
            output.text_logits = table[positions[kwargs["text_places"]] % len(table)]
        return output

    def run() -> object:
        hook = models.transformer.register_forward_hook(replace, with_kwargs=True)
        try:
            if in_text:
                return models.chat("Hello.", max_new_tokens=4, text_top_k=1 if is_greedy else 5, **settings)
            return models.text("a cat", **small(**settings)).images
        finally:
            hook.remove()

    def is_right(result: object) -> bool:
        if in_text:
            return models.is_answer(result)
        return models.are_codes(result) and (expected is None or torch.equal(result[0], expected))

    expected, has_to_be = None, None
    if is_greedy and not is_guided and not in_text:
        context = models.text.encode_prompt("a cat", height=32, width=32)[0].shape[1]
        positions = torch.tensor([[2, 3], [5, 6]]) + context  # after the opening three, a row end between
        best = in_image[positions % len(table)].max(dim=-1)
        expected = best.indices
        has_to_be = "right" if best.values.isfinite().all() else "refused"
    return Case(f"{settings} {table[:, :4]}", run, ("logits",), is_right, has_to_be, may_run=True)


# Texts, messages and images


def texts(models: Models, values: Values) -> Case:
    text = values.text() * (300 if values.random.random() < 0.03 else 1)
    negative = values.text()
    tokenizer, route = models.tokenizer, values.pick(["encode", "text", "edit", "chat"])
    has_to_be = None if any("\ud800" <= letter <= "\udfff" for letter in text + negative) else "right"
    if route == "encode":
        control = set(tokenizer.added_tokens_encoder.values())

        def is_spelled_out(ids: list[int]) -> bool:
            return not control.intersection(ids) and tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text

        return Case(
            f"{brief(text)}", lambda: encode_text(tokenizer, text), ("text", "Text"), is_spelled_out, has_to_be
        )
    calls = {
        "text": lambda: models.text(text, negative, **small(guidance_scale=2)).images,
        "edit": lambda: models.edit(text[:5000], torch.zeros(2, 2).long(), **small()).images,
        "chat": lambda: models.chat(text[:5000], max_new_tokens=1).text,
    }
    is_right = (lambda said: isinstance(said, str)) if route == "chat" else models.are_codes
    return Case(f"{route} {brief(text)} {brief(negative)}", calls[route], ("prompt", "messages"), is_right, has_to_be)


def messages(models: Models, values: Values) -> Case:
    images = values.pick([lambda: None, values.image, values.data_url])()
    content = [values.pick([values.value, lambda: values.mapping(0)])() for _ in range(2)]
    given = values.pick([values.value(), [{"role": "user", "content": content}]])
    names = ("messages", "images", "image", "conversation")
    return Case(
        f"{brief(given)} {brief(images)}",
        lambda: models.chat(given, images, max_new_tokens=1),
        names,
        lambda output: all(map(models.is_answer, output if isinstance(output, list) else [output])),
    )


def images(models: Models, values: Values) -> Case:
    image = values.pick([values.data_url, values.image, values.value, values.tensor])()
    return Case(
        f"{brief(image)}",
        lambda: models.edit("Redder.", image, **small(guidance_scale=1)).images,
        ("image", "prompt"),
        models.are_codes,
    )


# Arguments

# Good but slow between these.
SLOW = {
    "height": (64, 3200),
    "width": (64, 3200),
    "num_images_per_prompt": (2, 1024),
    "max_new_tokens": (3, 1 << 20),
}
SAMPLER = ("guidance_scale", "temperature", "top_k", "top_p", "min_p", "num_draft_tokens")
REQUIRED = ("num_images_per_prompt", "max_new_tokens", "max_sequence_length")
COMMON = ("height", "width", *SAMPLER, "draft_init", "generator", "output_type", "return_dict")
OF_IMAGES = ("num_images_per_prompt", "num_inference_steps", "negative_prompt", "prompt", "return_log_probs", "every")
OF_IMAGES += ("callback_on_step_end", "callback_on_step_end_tensor_inputs")
OF_PROMPTS = [f"{kind}_{what}" for kind in ("prompt", "negative_prompt") for what in ("token_ids", "attention_mask")]
ARGUMENTS = {
    "text": (*COMMON, *OF_IMAGES, *OF_PROMPTS, "latents", "max_sequence_length"),
    "edit": (*COMMON, *OF_IMAGES, "image", "task", "size", "strength", "crop_generator"),
    "chat": (*COMMON, "messages", "images", "conversation", "max_new_tokens", "text_temperature", "text_top_k")
    + ("crop_generator", "load_from"),
}
NUMERIC = {*SLOW, *SAMPLER, "num_inference_steps", "every", "max_sequence_length", "strength"}
NUMERIC |= {"text_temperature", "text_top_k"}
# What a refusal may name instead.
ALIASES = {"task": ("template", *SAMPLER), "height": ("size",), "width": ("size",), "size": ("height",)}
ALIASES |= {"callback_on_step_end": ("_guidance_scale",), **dict.fromkeys(OF_PROMPTS, ("prompt",))}


def arguments(models: Models, values: Values) -> Case:
    kind = values.pick(list(ARGUMENTS))
    names = values.random.sample(ARGUMENTS[kind], values.pick([1, 1, 1, 2, 3]))
    changed = {name: argument(name, values) for name in names}
    is_stream = "every" in names or values.random.random() < 0.2
    if is_stream:
        changed.pop("return_dict", None)

    def run(**kwargs: object) -> object:
        defaults = {
            "text": small(prompt="a cat", guidance_scale=1),
            "edit": small(prompt="Redder.", image=torch.zeros(2, 2).long(), guidance_scale=1),
            "chat": {"messages": "Hello.", "max_new_tokens": 1, "generator": torch.Generator().manual_seed(0)},
        }[kind]
        if "prompt_token_ids" in kwargs and "prompt" not in kwargs:
            del defaults["prompt"]
        if "size" in kwargs:
            del defaults["height"], defaults["width"]
        pipe = getattr(models, kind)
        if not is_stream:
            return pipe(**{**defaults, **kwargs})
        return list(pipe.stream(**{**defaults, **kwargs}))

    is_numeric = {name: is_number(value) for name, value in changed.items() if name in NUMERIC}
    drafts = changed.get("num_draft_tokens")
    is_auto = isinstance(drafts, str) and drafts == "auto"
    is_fine = all(
        fits or (changed[name] is None and name not in REQUIRED) or (name == "num_draft_tokens" and is_auto)
        for name, fits in is_numeric.items()
    )
    plain = {name: plain_number(value) for name, value in changed.items()}

    def is_right(result: object) -> bool:
        if len(is_numeric) < len(changed) or kind == "chat" or is_stream:
            return bool(result)
        return models.are_codes(result.images) and torch.equal(result.images, run(**plain).images)

    return Case(
        f"{kind} {'stream' if is_stream else 'call'} {brief(changed)}",
        lambda: run(**changed),
        (*names, *itertools.chain.from_iterable(ALIASES.get(name, ()) for name in names)),
        is_right,
        None if is_fine else "refused",
        may_run=callable(changed.get("callback_on_step_end")),
    )


def argument(name: str, values: Values) -> object:
    """A value of an argument, mostly a wrong one."""
    random, pick = values.random, values.pick
    if random.random() < 0.2 and name not in ("callback_on_step_end", *SLOW):
        return values.value()
    if name in NUMERIC:
        return values.number(*SLOW.get(name, ()))
    if name == "callback_on_step_end":
        return callback(values)
    if name in ("latents", *OF_PROMPTS):
        return pick([values.tensor, values.tensor, lambda: [values.tensor()], lambda: [[1, 2], [3, 4]]])()
    if name in ("prompt", "negative_prompt", "messages"):
        return pick([values.text, lambda: [values.text()], lambda: (values.text(), "b"), values.value])()
    if name in ("image", "images"):
        return pick([values.image, values.data_url, values.tensor, lambda: [values.image(), values.value()]])()
    if name in ("generator", "crop_generator"):
        return pick([0, torch.Generator(), [torch.Generator()], (torch.Generator(), 1), [], "cpu"])
    if name == "task":
        settings = {pick(["guidance_scale", "temperature", "top_k"]): values.number()}
        return pick(["depth", "pose", "", "<|image|>", "{prompt}", Task("{prompt} <|image|>", **settings), 1])
    if name == "conversation":
        return pick([LuminaMGPTConversation(), [LuminaMGPTConversation()], LuminaMGPTConversation, "x"])
    choices = [
        "pil",
        "np",
        "pt",
        "latent",
        "PIL",
        "free",
        "above",
        "random",
        "files",
        ("files",),
        ("ftp",),
        ["latents"],
    ]
    return pick([*choices, ["x"], True, False, 1, None, np.bool_(False), np.zeros(2), b"pil", ("latents", [])])


def callback(values: Values) -> object:
    given = values.pick([values.value, values.tensor, lambda: {"latents": values.tensor()}, values.number])()
    attribute = values.pick([None, None, "_guidance_scale", "_interrupt"])

    def change(pipe: object, step: int, timestep: object, inputs: dict) -> object:
        if attribute is None:
            return given
        setattr(pipe, attribute, given)

    return change if values.random.random() < 0.7 or callable(given) else given


def is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def plain_number(value: object) -> object:
    """A number of any type as one of Python's."""
    if not is_number(value):
        return value
    try:
        whole = int(value)
    except (OverflowError, ValueError):
        return float(value)
    return whole if whole == value else float(value)


# Scheduler configurations


def schedulers(models: Models, values: Values) -> Case:
    names = ["text_temperature", "text_top_k", "resolution", "draft_init", "batch_invariant", *SAMPLER]
    config = {
        name: values.pick([values.value, values.number, values.number, values.text])()
        for name in values.random.sample(names, values.pick([1, 1, 2]))
    }
    named = list(config)
    route = values.pick(["constructor", "from_config", "from_pretrained"])
    if route != "constructor" and values.random.random() < 0.3:
        config |= values.pick([{"extra": 1}, {"_class_name": values.number()}, {"_use_default_values": ["top_k"]}])
        named.append("_class_name")

    try:
        written = json.dumps(config, default=str)
    except ValueError:  # an integer that is too long
        written = "{}"

    def make() -> LuminaMGPTScheduler:
        if route == "constructor":
            return LuminaMGPTScheduler(**config)
        if route == "from_config":
            return LuminaMGPTScheduler.from_config(config)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "scheduler_config.json").write_text(written)
            return LuminaMGPTScheduler.from_pretrained(folder)

    def is_right(scheduler: LuminaMGPTScheduler) -> bool:
        again = LuminaMGPTScheduler.from_config(json.loads(scheduler.to_json_string()))
        before, models.text.scheduler = models.text.scheduler, scheduler
        try:
            codes = models.text("a cat", **small()).images
            models.text.scheduler = again
            return models.are_codes(codes) and torch.equal(models.text("a cat", **small()).images, codes)
        finally:
            models.text.scheduler = before

    errors = (ValueError, OSError) if route == "from_pretrained" else (ValueError,)
    return Case(f"{route} {brief(config)}", make, named, is_right, errors=errors)


# Checkpoints


def checkpoints(models: Models, values: Values) -> Case:
    """A checkpoint with something wrong in one of its files."""
    pick = values.pick
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    shutil.copytree(CHECKPOINT, folder / "model")
    shutil.copytree(VQGAN, folder / "images")
    has_to_be, names = None, []
    kind = pick(["bytes", "json", "json", "tensors", "tensors", "missing"])
    if kind == "tensors":
        path = folder / "model" / "model.safetensors"
        tensors = load_file(path)
        name = pick(sorted(tensors))
        tensor = tensors.pop(name)
        how = pick(["drop", "rename", "reshape", "nan", "type", "extra"])
        change = {
            "drop": {},
            "rename": {name + "s": tensor},
            "reshape": {name: torch.cat([tensor, tensor], dim=-1)},
            "nan": {name: tensor.flatten().index_fill(0, torch.tensor(0), float("nan")).view(tensor.shape)},
            "type": {name: tensor.to(pick([torch.bool, torch.int8, torch.float64]))},
            "extra": {name: tensor, "extra": tensor.clone()},
        }[how]
        save_file({**tensors, **change}, path, metadata={"format": "pt"})
        names, shown = [name, "safetensors"], f"{how} {name}"
        has_to_be = "refused" if how in ("drop", "rename", "reshape", "nan") else None
    else:
        files = (
            sorted(folder.rglob("*.json")) if kind == "json" else [one for one in folder.rglob("*.*") if one.is_file()]
        )
        path = pick(sorted(files))
        shown = f"{kind} {path.relative_to(folder)}"
        if kind == "missing":
            path.unlink()
        elif kind == "bytes":
            path.write_bytes(values.damaged(path.read_bytes()))
        else:
            content = json.loads(path.read_text())
            keys = damage_json(content, values)
            path.write_text(json.dumps(content))
            names, shown = [str(key) for key in keys], f"{shown} {keys}"
    names += [path.name, path.stem, "tokenizer", "config"]

    def load() -> torch.Tensor:
        try:
            scheduler = LuminaMGPTScheduler(resolution=BASE_SIZE, num_draft_tokens=0)
            pipe = LuminaMGPTPipeline.from_pretrained(
                folder / "model", original_vqgan=folder / "images", scheduler=scheduler, dtype=torch.float32
            )
            pipe.set_progress_bar_config(disable=True)
            return good_image(pipe)
        finally:
            shutil.rmtree(folder)

    return Case(shown, load, names, models.are_codes, has_to_be, errors=(ValueError, OSError))


def damage_json(content: object, values: Values) -> list:
    """Change, add or leave out something at a random place, whose keys are returned."""
    keys, parent = [], content
    while True:
        if isinstance(parent, dict):
            key = values.pick(sorted(parent)[:40])
        else:
            key = values.random.randrange(min(len(parent), 40))
        keys.append(key)
        if not isinstance(parent[key], (dict, list)) or not parent[key] or values.random.random() < 0.3:
            break
        parent = parent[key]
    others = [None, True, -1, 0, 3, 10**9, 0.5, 1e300, "x", "\ud800", [], {}, [[]], {"x": 1}, "__delete__"]
    other = values.pick(others)
    if other == "__delete__":
        del parent[key]
    else:
        parent[key] = other
    return keys


KINDS: dict[str, tuple[int, Callable[[Models, Values], Case]]] = {
    "token_streams": (15, token_streams),
    "prompt_ids": (10, prompt_ids),
    "logits": (10, hostile_logits),
    "texts": (10, texts),
    "messages": (12, messages),
    "images": (12, images),
    "arguments": (22, arguments),
    "schedulers": (9, schedulers),
    "checkpoints": (1, checkpoints),
}
"""How often each kind is drawn, and what draws a case of it."""
