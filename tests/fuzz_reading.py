# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Seeded malformed images and messages: each is read, or refused by a `ValueError` that begins with the argument's name.

    python tests/fuzz_reading.py --cases 10000 --seed 0

prints one line for every case that ends in anything else or takes more than 5 seconds, and exits with 1 if there is
one. The suite runs the first few hundred.
"""

import argparse
import base64
import io
import random
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image
import torch

from lumina_mgpt_diffusers import ImagePart, TextPart
from lumina_mgpt_diffusers.lumina_mgpt.chat_messages import read_messages
from lumina_mgpt_diffusers.lumina_mgpt.image_encoding import load_images, prepare_image


FORMATS = [
    *(("PNG", mode) for mode in ("RGBA", "P", "1", "I;16")),
    *(("JPEG", mode) for mode in ("RGB", "CMYK", "L")),
    *(("TIFF", mode) for mode in ("RGB", "F", "LAB")),
    *((name, "RGB") for name in ("GIF", "BMP", "WEBP", "ICO", "PPM", "TGA", "PCX", "DDS")),
]
BASE_SIZE = 96
MOST_SECONDS = 5


class Fuzzer:
    """Draws malformed values, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        pixels = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
        self.files = []
        for name, mode in FORMATS:
            file = io.BytesIO()
            image = PIL.Image.new(mode, (60, 40)) if mode in ("I;16", "F", "LAB") else pixels.convert(mode)
            image.save(file, name)
            self.files.append(file.getvalue())

    def file(self) -> bytes:
        """An image file of some format, with bytes changed, cut off, inserted and left out."""
        content = bytearray(self.random.choice(self.files))
        for _ in range(self.random.randint(1, 8)):
            place = self.random.randrange(min(len(content), self.random.choice([40, 200, 10**6])) or 1)
            length = self.random.randint(1, 30)
            kind = self.random.choice(["change", "change", "cut", "insert", "delete"])
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
        mode = self.random.choice(
            ["1", "L", "P", "PA", "RGB", "RGBA", "RGBa", "La", "LAB", "HSV", "CMYK", "F", "I;16"]
        )
        return PIL.Image.new(mode, (self.random.randint(0, 9), self.random.randint(0, 900)))

    def value(self, depth: int = 0) -> object:
        """Anything: numbers, texts, tensors, arrays, images, and lists and dicts of such."""
        leaves: list[Callable] = [
            lambda: self.random.choice([None, True, 3, float("nan"), 10**5000, b"a", object(), int, np.float32]),
            lambda: self.random.choice(["x", "\ud800", "data:,x", "http://x", "/etc/passwd", "<|image|>", ""]),
            lambda: self.random.choice([np.zeros((2, 2)), np.array("x"), np.array(None), np.zeros((0, 3, 3))]),
            lambda: self.random.choice([torch.zeros(3, 4), torch.zeros(2, 2).long(), torch.zeros(1, device="meta")]),
            lambda: self.random.choice([TextPart("x"), TextPart(None), ImagePart(None, None), ImagePart(3, "x")]),
            lambda: self.random.choice([memoryview(b"x"), range(3), {"type"}, iter(())]),
            self.data_url,
            self.image,
        ]
        if depth < 4 and self.random.random() < 0.4:
            items = [self.value(depth + 1) for _ in range(self.random.randint(0, 3))]
            return items if self.random.random() < 0.5 else self.mapping(depth + 1)
        return self.random.choice(leaves)()

    def mapping(self, depth: int) -> dict:
        keys = ["type", "type", "text", "image", "url", "path", "base64", "role", "content"]
        values = [lambda: self.value(depth), lambda: "text", lambda: "image", lambda: "user"]
        return {self.random.choice(keys): self.random.choice(values)() for _ in range(self.random.randint(0, 4))}

    def case(self) -> Callable[[], object]:
        """Something to call."""
        kind = self.random.choice(["file", "image", "messages", "parts"])
        if kind in ("file", "image"):
            value = self.data_url() if kind == "file" else self.value()
            return lambda: prepare(load_images(value, "image", load_from=()))
        if kind == "messages":
            value, images = self.value(), self.random.choice([None, self.image(), self.data_url()])
            return lambda: prepare(read_messages(value, images).images)
        content = [self.random.choice([self.value, lambda: self.mapping(0)])() for _ in range(2)]
        return lambda: prepare(read_messages([{"role": "user", "content": content}]).images)


def prepare(images: list) -> None:
    for image in images:
        if isinstance(image, PIL.Image.Image):
            prepare_image(image, BASE_SIZE)


def failures(num_cases: int, seed: int) -> Iterator[str]:
    """What is wrong with each case that is neither right nor refused by name, or takes too long."""
    fuzzer = Fuzzer(seed)
    for index in range(num_cases):
        case = fuzzer.case()
        begin = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case()
        except ValueError as error:
            message = str(error)
            if not message.startswith("`") or len(message) > 1500 or "\ud800" in message:
                yield f"case {index}: {message!r}"
        except Exception as error:
            yield f"case {index}: {type(error).__name__}: {error}"
        seconds = time.perf_counter() - begin
        if seconds > MOST_SECONDS:
            yield f"case {index}: {seconds:.1f} seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description="Read malformed images and messages.")
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    num_failures = 0
    for failure in failures(args.cases, args.seed):
        num_failures += 1
        print(failure)
    print(f"{num_failures} of {args.cases} cases failed.")
    raise SystemExit(num_failures > 0)


if __name__ == "__main__":
    main()
