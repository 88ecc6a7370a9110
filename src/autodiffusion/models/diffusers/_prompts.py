"""Prompts: captions as a text encoder gives them to the network, each encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

NULL = -1
"""The number that stands for no caption, the prompt of the unconditional half of a guided prediction."""

Encode: TypeAlias = Callable[[Sequence[str]], tuple[Tensor, ...]]
"""Texts to what the network takes of them: tensors ``[len(texts), ...]``. The empty text stands for no caption."""


class Prompts:
    """What captions of these numbers are to the network.

    A caption is encoded when it is first asked for, and kept on the CPU: with Stable Diffusion 1, 231 KiB in float32.

    Attributes:
        texts: the captions.
        encode: the text encoder.
        device: where the network takes them.
    """

    def __init__(self, texts: Sequence[str], encode: Encode, device: str) -> None:
        self.texts, self.encode, self.device = texts, encode, device
        self._kept: dict[str, tuple[Tensor, ...]] = {}
        self._last: tuple[list[int], tuple[Tensor, ...]] = ([], ())
        self([NULL])  # now, so that no prediction's cost counts it

    def __call__(self, numbers: Sequence[int]) -> tuple[Tensor, ...]:
        """The tensors ``[len(numbers), ...]`` of these captions, on the device."""
        wanted = list(numbers)
        if wanted != self._last[0]:  # the steps of all plans ask for the same ones on a block of noise
            texts = ["" if number == NULL else self.texts[number] for number in wanted]
            self._encode(texts)
            columns = zip(*(self._kept[text] for text in texts), strict=True)
            self._last = wanted, tuple(torch.stack(column).to(self.device) for column in columns)
        return self._last[1]

    def _encode(self, texts: Sequence[str]) -> None:
        """Keeps those of these texts that are new."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if new:
            # tensors of inference mode could not be used outside it
            with torch.inference_mode(False), torch.no_grad():
                columns = [column.cpu() for column in self.encode(new)]
            self._kept |= {text: tuple(column[i] for column in columns) for i, text in enumerate(new)}


def text_encoder(pairs: Sequence[tuple[Any, Any]], *, pooled: bool = False, zeros: bool = False) -> Encode:
    """What Stable Diffusion's pipelines make of a text.

    Args:
        pairs: tokenizers and text encoders of transformers, one of each, or two for Stable Diffusion XL.
        pooled: give the last hidden states but one of all encoders, side by side, and the last one's pooled output, as
            for Stable Diffusion XL; otherwise the output of the only one.
        zeros: no caption is zeros, and not the empty text.
    """

    def encode(texts: Sequence[str]) -> tuple[Tensor, ...]:
        outputs = []
        for tokenizer, encoder in pairs:
            tokens = tokenizer(
                list(texts),
                padding="max_length",
                max_length=encoder.config.max_position_embeddings,
                truncation=True,
                return_tensors="pt",
            )
            mask = (
                tokens.attention_mask if not pooled and getattr(encoder.config, "use_attention_mask", False) else None
            )
            outputs.append(
                encoder(
                    tokens.input_ids.to(encoder.device),
                    attention_mask=None if mask is None else mask.to(encoder.device),
                    output_hidden_states=pooled,
                )
            )
        if not pooled:
            return (outputs[0][0],)
        found = (torch.cat([output.hidden_states[-2] for output in outputs], -1), outputs[-1][0])
        if zeros:
            for row in (i for i, text in enumerate(texts) if not text):
                for column in found:
                    column[row] = 0
        return found

    return encode
