# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Malformed values of every kind, drawn by a seed."""

import base64
import functools
import io
import random
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from numbers import Real

import numpy as np
import PIL.Image
import torch

from lumina_mgpt_diffusers import ImagePart, TextPart


FORMATS = [
    *(("PNG", mode) for mode in ("RGBA", "P", "1", "I;16")),
    *(("JPEG", mode) for mode in ("RGB", "CMYK", "L")),
    *(("TIFF", mode) for mode in ("RGB", "F", "LAB")),
    *((name, "RGB") for name in ("GIF", "BMP", "WEBP", "ICO", "PPM", "TGA", "PCX", "DDS")),
]

NUMBERS = [
    *(0, 1, 2, 3, -1, 64, 1023, 1025, 65536, 2**31, 2**63, 2**64, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1.0, 3.0, 1e-300, 1e-38, 1e-19, 1e6, 1e30, 1e300, float("nan"), float("inf"), -float("inf")),
    *(np.int8(3), np.uint16(2), np.float16(2), np.float32("inf"), np.float64(0.5), np.bool_(True), True, False),
    *(np.array(3), np.array([3]), torch.tensor(2), torch.tensor([1.0, 2.0]), torch.tensor(1, device="meta")),
    *(
        Fraction(1, 3),
        Fraction(4, 2),
        Decimal(2),
        2j,
        "3",
        "auto",
        b"3",
        None,
        [],
        [2],
        (3,),
        {},
        {1: 2},
        range(3),
        int,
    ),
]


class Values:
    """Draws malformed values, the same for the same seed."""

    def __init__(self, seed: object) -> None:
        self.random = random.Random(str(seed))
        self.pick = self.random.choice
        self.files = image_files()

    def file(self) -> bytes:
        """An image file of some format, with bytes changed, cut off, inserted and left out."""
        return self.damaged(self.pick(self.files))

    def damaged(self, content: bytes) -> bytes:
        """The content with bytes changed, cut off, inserted and left out."""
        content = bytearray(content)
        for _ in range(self.random.randint(1, 8)):
            place = self.random.randrange(min(len(content), self.pick([40, 200, 10**6])) or 1)
            length = self.random.randint(1, 30)
            kind = self.pick(["change", "change", "cut", "insert", "delete"])
            if kind == "change":
                content[place : place + 1] = self.random.randbytes(1)
            elif kind == "cut":
                del content[place:]
            elif kind == "insert":
                content[place:place] = self.random.randbytes(length)
            else:
                del content[place : place + length]
        return bytes(content)

    def data_url(self) -> str:
        return f"data:;base64,{base64.b64encode(self.file()).decode()}"

    def image(self) -> PIL.Image.Image:
        mode = self.pick(["1", "L", "P", "PA", "RGB", "RGBA", "RGBa", "La", "LAB", "HSV", "CMYK", "F", "I;16"])
        return PIL.Image.new(mode, (self.random.randint(0, 9), self.random.randint(0, 900)))

    def text(self) -> str:
        """Text with the names of control tokens, surrogates, bytes of no character, or much of it."""
        pieces = [
            "a cat",
            "<eoss>",
            "<racm3:break>",
            "<|image|>",
            "<s>",
            "</s>",
            "IMGIMGBZ",
            "<reserved08706>",
            "\0",
            "{prompt}",
        ]
        pieces += [
            "\ud83d\ude00" if self.random.random() < 0.1 else "😀",
            "e\u0301",
            "\u202e",
            "\ufffd",
            " ",
            "\r\n",
            "%s",
        ]
        return "".join(self.pick(pieces) for _ in range(self.pick([0, 1, 2, 5, 200])))

    def tensor(self) -> torch.Tensor:
        """A tensor of any dtype, small shape and layout, values about the edges of what codes and token ids are."""
        shape = self.pick(
            [(), (0,), (3,), (1, 1), (2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 0, 2), (1, 3, 2), (1, 1, 2, 2)]
        )
        dtype = self.pick(
            [torch.int64] * 6 + [torch.int32, torch.uint8, torch.bool, torch.float32, torch.bfloat16, torch.complex64]
        )
        least, most = self.pick([(-1, 8192), (-1, 0), (0, 2), (-2, 1), (8190, 8194), (0, 70000), (-(2**62), 2**62)])
        generator = torch.Generator().manual_seed(self.random.getrandbits(32))
        tensor = torch.randint(least, most, shape, generator=generator).to(dtype)
        kind = self.random.random()
        if kind < 0.05:
            return tensor.to("meta")
        if kind < 0.1:
            return tensor.to_sparse()
        return tensor.mT if kind < 0.2 and tensor.ndim > 1 else tensor

    def number(self, least_slow: float = 0, most_slow: float = 0) -> object:
        """A number or what may be taken for one, but for those, good ones, that would take long."""
        while True:
            number = self.pick(NUMBERS)
            if not (isinstance(number, Real) and least_slow < number <= most_slow):
                return number

    def value(self, depth: int = 0) -> object:
        """Anything: numbers, texts, tensors, arrays, images, and lists and dicts of such."""
        leaves: list[Callable] = [
            lambda: self.pick([None, True, 3, float("nan"), 10**5000, b"a", object(), int, np.float32]),
            lambda: self.pick(["x", "\ud800", "data:,x", "http://[", "/etc/passwd", "<|image|>", ""]),
            lambda: self.pick([np.zeros((2, 2)), np.array("x"), np.array(None), np.zeros((0, 3, 3))]),
            lambda: self.pick([torch.zeros(3, 4), torch.zeros(2, 2).long(), torch.zeros(1, device="meta")]),
            lambda: self.pick([TextPart("x"), TextPart(None), ImagePart(None, None), ImagePart(3, "x")]),
            lambda: self.pick([memoryview(b"x"), range(3), {"type"}, iter(())]),
            self.data_url,
            self.image,
        ]
        if depth < 4 and self.random.random() < 0.4:
            items = [self.value(depth + 1) for _ in range(self.random.randint(0, 3))]
            return items if self.random.random() < 0.5 else self.mapping(depth + 1)
        return self.pick(leaves)()

    def mapping(self, depth: int) -> dict:
        keys = ["type", "type", "text", "image", "url", "path", "base64", "role", "content"]
        values = [lambda: self.value(depth), lambda: "text", lambda: "image", lambda: "user"]
        return {self.pick(keys): self.pick(values)() for _ in range(self.random.randint(0, 4))}


@functools.cache
def image_files() -> list[bytes]:
    """A small image in every format that is read."""
    pixels = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    files = []
    for name, mode in FORMATS:
        file = io.BytesIO()
        image = PIL.Image.new(mode, (20, 12)) if mode in ("I;16", "F", "LAB") else pixels.convert(mode)
        image.save(file, name)
        files.append(file.getvalue())
    return files
