"""What reading a JPEG's Huffman codes needs, in compiled loops: look-up tables, and the bytes without stuffing.

After ITU-T T.81 (names in capitals are its). A code is looked up together with the bits that follow it, so that one
look gives a coefficient, or two of them where both are short.
"""

import numpy as np

from tnt_jax.data import jpeg_header
from tnt_jax.data.compiled import compiled, inlined

DC_BITS, AC_BITS = 9, 11  # looked up at once; tables of more bits leave the processor's nearest memory
LONG = 64  # a flag in AC's entries: the level is not in the entry
# A component's tables, one array: entries for DC and for AC, then for each of them the codes by length and the values.
AC_ENTRIES = 1 << DC_BITS
LISTS = AC_ENTRIES + (1 << AC_BITS)
VALUES = 32  # behind a list's start
LIST = VALUES + 256
TABLES = LISTS + 2 * LIST
SPARE = 2048  # zeros behind the codes: more than the blocks of one MCU can take


@compiled
def prepare(data, frame, codes, tables):
    """data uint8 [n], a file, frame: read_frame's -> how many bytes of codes there are.

    Fills codes uint8 [n + SPARE], the scan without the zeros after 0xFF, up to a marker, with zeros behind; and tables
    int32 [components * TABLES], where a third component with the second one's codes has none (`table_of`).
    """
    for number in range(frame[jpeg_header.COMPONENTS]):
        if table_of(frame, number) == number:
            dc, ac = frame[jpeg_header.DC + number], frame[jpeg_header.AC + number]
            table = tables[number * TABLES : (number + 1) * TABLES]
            _fill_dc(data, dc, table)
            _fill_ac(data, ac, table[AC_ENTRIES:])
            _list_codes(data, dc, table[LISTS:])
            _list_codes(data, ac, table[LISTS + LIST :])
    return _without_stuffing(data, frame[jpeg_header.SCAN], codes)


@compiled
def table_of(frame, number):
    """-> the component whose tables one reads its codes with: nearly always the two of the colours have the same."""
    if number < 2 or frame[jpeg_header.DC + 2] != frame[jpeg_header.DC + 1]:
        return number
    return 2 if frame[jpeg_header.AC + 2] != frame[jpeg_header.AC + 1] else 1


@inlined
def eight(data, place):
    """The eight bytes from a place (uint64) on as a number, the first one highest."""
    return (
        (np.uint64(data[place]) << np.uint64(56))
        | (np.uint64(data[place + np.uint64(1)]) << np.uint64(48))
        | (np.uint64(data[place + np.uint64(2)]) << np.uint64(40))
        | (np.uint64(data[place + np.uint64(3)]) << np.uint64(32))
        | (np.uint64(data[place + np.uint64(4)]) << np.uint64(24))
        | (np.uint64(data[place + np.uint64(5)]) << np.uint64(16))
        | (np.uint64(data[place + np.uint64(6)]) << np.uint64(8))
        | np.uint64(data[place + np.uint64(7)])
    )


@compiled
def _without_stuffing(data, start, codes):
    size, place, end = 0, start, data.size
    while place < end:
        stop = place
        while stop + 8 <= end and not _has_255(eight(data, np.uint64(stop))):
            stop += 8
        while stop < end and data[stop] != 0xFF:
            stop += 1
        source, copy = data[place:stop], codes[size:]
        for step in range(source.size):
            copy[step] = source[step]
        size += source.size
        if stop + 1 >= end or data[stop + 1] != 0:
            break
        codes[size] = 0xFF
        size, place = size + 1, stop + 2
    for step in range(SPARE):
        codes[size + step] = 0
    return size


@inlined
def _has_255(word):
    """Whether one of the word's bytes is 0xFF."""
    return (~word - np.uint64(0x0101010101010101)) & word & np.uint64(0x8080808080808080) != 0


@compiled
def _list_codes(data, start, codes):
    """A table's codes by length, for those that are too long for a look-up -> codes [LIST].

    Of 16 bits that begin with a code of length n the number is below codes[n - 1] and no shorter code's, and the code's
    place among the values is the code plus codes[16 + n - 1].
    """
    code, place = 0, 0
    for length in range(16):
        count = np.int64(data[start + length])
        code, place = code + count, place + count
        codes[length] = code << (15 - length)
        codes[16 + length] = place - code
        code *= 2
    for symbol in range(place):
        codes[VALUES + symbol] = data[start + 16 + symbol]


@compiled
def _fill_dc(data, start, table):
    """Entries by the next bits: 8 bits for how many a code and its level have, then the level's; 0: a longer code."""
    for entry in range(1 << DC_BITS):
        table[entry] = 0
    code, place = 0, start + 16
    for length in range(1, DC_BITS + 1):
        for _ in range(data[start + length - 1]):
            size, free = np.int64(data[place]) & 15, DC_BITS - length
            for entry in range(code << free, (code + 1) << free):
                table[entry] = (size << 8) | (length + size)
            code, place = code + 1, place + 1
        code *= 2


@compiled
def _fill_ac(data, start, table):
    """Entries by the next bits. From the lowest bit of an entry on:

    6 bits for how many a code and its level have, LONG (1 bit), 6 the steps to the coefficient (63: the block ends), 6
    the steps from there to a second one, or 0; then 1 bit unused, 6 the first one's level and 6 the second one's, or,
    without a second one, 12 the level. In a LONG entry the level has more bits than those looked up; how many, stands
    in the place of the level. LONG and no bits: a code longer than what is looked up. The steps from a LONG entry's
    coefficient are 63, so that it looks like a block's end.
    """
    for entry in range(1 << AC_BITS):
        table[entry] = LONG | (63 << 7) | (63 << 13)
    code, place = 0, start + 16
    for length in range(1, AC_BITS + 1):
        for _ in range(data[start + length - 1]):
            run, size, free = np.int64(data[place]) >> 4, np.int64(data[place]) & 15, AC_BITS - length
            steps = run + 1 if size or run == 15 else 63
            if size > free:
                for entry in range(code << free, (code + 1) << free):
                    table[entry] = (size << 20) | (63 << 13) | (steps << 7) | LONG | (length + size)
            else:
                for entry in range(code << free, (code + 1) << free):
                    bits = (entry >> (free - size)) & ((1 << size) - 1)
                    level = bits - ((1 << size) - 1 if 2 * bits < 1 << size else 0)
                    table[entry] = np.int32((level << 20) | (steps << 7) | (length + size))
            code, place = code + 1, place + 1
        code *= 2
    _pair(table)


@compiled
def _pair(table):
    """Adds the second coefficients where both levels have 6 bits or fewer, and the first one does not end the block."""
    single = table[: 1 << AC_BITS].copy()
    for bits in range(1 << AC_BITS):
        one = np.int64(single[bits])
        used = one & 63
        two = np.int64(single[(bits << used) & ((1 << AC_BITS) - 1)])
        used += two & 63
        levels = (((two >> 20) & 63) << 26) | (((one >> 20) & 63) << 20)
        pair = np.int32(levels | (((two >> 7) & 63) << 13) | (one & (63 << 7)) | used)
        fits = ((one | two) & LONG == 0) & ((one >> 7) & 63 != 63) & (used <= AC_BITS)
        small = ((one >> 20) + 32 < 64) & ((one >> 20) + 32 >= 0) & ((two >> 20) + 32 < 64) & ((two >> 20) + 32 >= 0)
        table[bits] = pair if fits & small else single[bits]  # without a branch, which would be taken at random
