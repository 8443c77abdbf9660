"""Lines changed at random: what stands in them, and what does not belong there."""

PIECES = [
    *[bytes([character]) for character in b'"\\{}[]:,\r\n\t-\x00\xff\x1b'],
    *[b'"id":', b'"text":', b'"meta":', b'"lang":', b"NaN", b"1e999", b"null", b"true", b"9" * 50, b"[" * 40],
    *[b"\xed\xa0\x80", b"\\ud800", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\x1f\x8b", b"PAR1", b"    ", b'""'],
]


def mutant(rng, line, number):
    """The line with an id of its own and one to four changes, now and then none."""
    line = bytearray(line.replace(b'"a"', b'"%d"' % number, 1))
    for _ in range(rng.randint(0, 4)):
        at, kind = rng.randrange(len(line) + 1), rng.randrange(4)
        if kind == 0:
            line[at:at] = rng.choice(PIECES)
        elif kind == 1:
            del line[at : at + rng.randint(1, 6)]
        elif kind == 2 and at < len(line):
            line[at] ^= 1 << rng.randrange(8)
        else:
            line[at:at] = line[: rng.randint(0, 40)]
    return bytes(line)
