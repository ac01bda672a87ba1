# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Seeded malformed inputs: each is refused by an error that names the argument or file, before a model runs, or is right.

    python tests/fuzz.py --cases 10000 --seed 0

prints one line for every case that ends in anything else, takes more than 5 seconds (of a processor; 30 of a clock) or
1 GiB more than a good call, or after which a good call no longer gives its image, and exits with 1 if there is one.
`--only` runs single cases again.
"""

import argparse
import resource
import time
import warnings
from collections.abc import Iterable, Iterator

from conftest import CHECKPOINT, load_pipeline
from diffusers.utils import logging as diffusers_logging
from fuzz_cases import KINDS, Case, Models, brief
from fuzz_values import Values
from tqdm import tqdm
from transformers.utils import logging as transformers_logging


MOST_SECONDS = 5
MOST_CLOCK_SECONDS = 30
MOST_KIBIBYTES = 1 << 20
LONGEST_MESSAGE = 1500


def failures(
    models: Models,
    indices: Iterable[int],
    seed: int = 0,
    kinds: Iterable[str] = tuple(KINDS),
    check_every: int = 1,
) -> Iterator[str]:
    """What is wrong with each case that is neither right nor refused as it has to be."""
    weights = [KINDS[kind][0] for kind in kinds]
    memory = peak_memory()
    for index in indices:
        values = Values(f"{seed} {index}")
        (kind,) = values.random.choices(list(kinds), weights)
        case = KINDS[kind][1](models, values)
        begin = time.process_time(), time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problems = list(check(models, case))
        seconds, clock_seconds = time.process_time() - begin[0], time.perf_counter() - begin[1]
        growth = peak_memory() - memory
        if seconds > MOST_SECONDS or clock_seconds > MOST_CLOCK_SECONDS:
            problems.append(f"{seconds:.1f} seconds of a processor, {clock_seconds:.1f} of a clock")
        if growth > MOST_KIBIBYTES:
            problems.append(f"{growth / 2**20:.1f} GiB")
            memory += growth
        if index % check_every == 0 and not models.are_good():
            problems.append("a good call gives another image afterwards")
        yield from (f"case {index} ({kind}): {problem}: {case.shown}" for problem in problems)


def check(models: Models, case: Case) -> Iterator[str]:
    before = models.num_forwards
    try:
        result = case.call()
    except case.errors as error:
        message = str(error)
        if not any(name in message for name in case.names) or len(message) > LONGEST_MESSAGE:
            yield f"{type(error).__name__} without a name: {message[:300]!r}"
        if not message.replace("\n", "").isprintable():
            yield f"a message that cannot be printed: {message[:300]!r}"
        if models.num_forwards > before and not case.may_run:
            yield f"refused after a model ran: {message[:300]!r}"
        if case.has_to_be == "right":
            yield f"refused: {message[:300]!r}"
    except Exception as error:
        yield f"{type(error).__name__}: {str(error)[:300]!r}"
    else:
        if case.has_to_be == "refused":
            yield "accepted"
        else:
            yield from wrong(case, result)


def wrong(case: Case, result: object) -> Iterator[str]:
    try:
        if not case.is_right(result):
            yield f"wrong: {brief(result)}"
    except Exception as error:
        yield f"wrong, {type(error).__name__}: {str(error)[:300]!r}"


def peak_memory() -> int:
    """In KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description="Give malformed inputs to everything that takes any.")
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--only", type=int, nargs="+", help="indices of the cases to run")
    parser.add_argument("--check_every", type=int, default=1, help="cases from one good call to the next")
    args = parser.parse_args()
    diffusers_logging.set_verbosity(50)
    transformers_logging.set_verbosity(50)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    num_failures = 0
    with Models(load_pipeline(CHECKPOINT)) as models:
        indices = tqdm(args.only or range(args.cases), mininterval=10)
        for failure in failures(models, indices, args.seed, args.kinds, args.check_every):
            num_failures += 1
            print(failure, flush=True)
    print(f"{num_failures} failures in {len(indices)} cases.")
    raise SystemExit(num_failures > 0)


if __name__ == "__main__":
    main()
