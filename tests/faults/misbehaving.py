"""A user's model family that does to chosen masks what the environment variable MISBEHAVIOUR says.

It is a JSON object from mask digests (or "*" for all others) to 'raise', 'loop', 'sleep', 'eat', 'die' or 'queue': to
wait for one of the tickets that the test lays into the folder TICKETS, or for the file 'open' there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparsefront.spaces.masks import mask_digest, pack_bits
from sparsefront.trainables.models.mlp import MLPFamily
from sparsefront.trainables.models.model import Model, Options

_BEHAVIOUR: dict[str, str] = json.loads(os.environ.get("MISBEHAVIOUR", "{}"))


def check_mask(mask: npt.NDArray[np.bool_]) -> None:
    match _BEHAVIOUR.get(mask_digest(pack_bits(mask)), _BEHAVIOUR.get("*")):
        case "raise":
            raise ZeroDivisionError("the user's own mistake")
        case "loop":
            while True:
                pass
        case "sleep":
            os.read(os.pipe()[0], 1)  # a blocking read: nobody ever writes
        case "eat":
            np.ones(1 << 32, dtype=np.uint8)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "queue":
            queue(Path(os.environ["TICKETS"]))


def queue(tickets: Path) -> None:
    while not (tickets / "open").exists():
        for ticket in tickets.glob("ticket-*"):
            with contextlib.suppress(FileNotFoundError):  # another worker was faster
                ticket.unlink()
                return
        threading.Event().wait(0.02)


class Family(MLPFamily):
    def build(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Model:
        model = super().build(options, input_shape=input_shape, n_classes=n_classes)
        return dataclasses.replace(model, check_mask=check_mask)


family = Family()
