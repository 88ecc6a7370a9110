"""The small exact model, with faults that tests cause: at certain times, or once a file is there."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import small
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from autodiffusion import Model, NoiseSchedule

RAISES, HANGS, DIES, FULL = 97.5, 96.5, 94.5, 93.5
"""Times at which the network raises an error, does not answer, ends its process, or takes too much memory; none is
whole, so that a search of whole time steps meets none."""
FITS = 3
"""Samples for which memory suffices at the time ``FULL``."""
PAUSE = "FAULTY_PAUSE"
"""The environment variable with the seconds that an answer takes."""
FOLDER = "FAULTY_FOLDER"
"""The environment variable with the folder of the file ``kill``: a worker that finds it removes it, and dies."""
KILL = "kill"
MOMENT = "FAULTY_MOMENT"
"""The environment variable with the number of an answer, and the seconds after it, at which the process is killed."""
answers = itertools.count(1)


def model() -> Model:
    """The model, which is in order but for its faults."""
    whole = small.model()

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        time.sleep(float(os.environ.get(PAUSE, "0")))
        answer, after = os.environ.get(MOMENT, "0 0").split()
        if next(answers) == int(answer):
            threading.Timer(float(after), os.kill, (os.getpid(), signal.SIGKILL)).start()
        fail(float(t[0]), len(x))
        return whole.network(x, t, label)

    return replace(whole, network=network, name="faulty")


def fail(t: float, samples: int) -> None:
    """What happens at this time; mostly nothing."""
    folder = os.environ.get(FOLDER)
    if folder and "default_worker" in sys.argv[0]:  # Ray's, not the driver
        try:
            (Path(folder) / KILL).unlink()
        except FileNotFoundError:
            pass
        else:
            t = DIES
    if t == RAISES:
        raise ValueError("no answer\nat this time")
    if t == HANGS:
        time.sleep(3600)
    if t == DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    if t == FULL and samples > FITS:
        raise torch.OutOfMemoryError("CUDA out of memory")


def _three_channels(network: Callable[..., object]) -> Model:
    return Model(network, NoiseSchedule.cosine(100), (3, 8, 8), features="small:features")  # type: ignore[arg-type]


def few_channels() -> Model:
    """Its network answers with one channel of three, which would be broadcast."""
    return _three_channels(lambda x, t, label: x[:, :1])


def no_tensor() -> Model:
    """Its network answers with what diffusers' networks do unless they are asked for a tuple."""
    return _three_channels(lambda x, t, label: UNet2DOutput(sample=x))


def two_arguments() -> Model:
    """Its network takes no label."""
    return _three_channels(lambda x, t: x)


def raising() -> Model:
    """Its network was made for another shape."""
    return _three_channels(lambda x, t, label: x @ torch.zeros(5, 5))
