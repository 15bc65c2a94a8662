"""What reading a JPEG's Huffman codes needs, in compiled loops: look-up tables and bytes without stuffing.

After ITU-T T.81 (names in capitals are its). A code is looked up together with the bits that follow it, so that one look
gives a coefficient, or two of them where both are short.
"""

import numpy as np

from tnt_jax.data import jpeg_header
from tnt_jax.data.compiled import compiled, inlined

DC_BITS, AC_BITS = 9, 12  # looked up at once
LONG = 32  # a flag in AC's entries: no level inside
# A component's tables, one array: entries for DC and for AC, then for each of them its codes by length and values.
AC_ENTRIES = 1 << DC_BITS
LISTS = AC_ENTRIES + (1 << AC_BITS)
VALUES = 32  # behind a list's start
LIST = VALUES + 256
TABLES = LISTS + 2 * LIST
SPARE = 2048  # zeros behind the codes: more than the blocks of one MCU can take

_FRAME_DC, _FRAME_AC, _SCAN = jpeg_header.DC, jpeg_header.AC, jpeg_header.SCAN
_U8 = np.uint64(8)


@compiled
def prepare(data, frame, codes, tables):
    """data uint8 [n], a file, frame: read_frame's -> how many bytes of codes there are.

    Fills codes uint8 [n + SPARE], the scan without the zeros after 0xFF, up to a marker, with zeros behind; and tables
    int32 [components * TABLES].
    """
    for number in range(frame[jpeg_header.COMPONENTS]):
        table = tables[number * TABLES : (number + 1) * TABLES]
        dc, ac = frame[_FRAME_DC + number], frame[_FRAME_AC + number]
        if number == 2 and dc == frame[_FRAME_DC + 1] and ac == frame[_FRAME_AC + 1]:
            break  # the table of the component before will do
        _fill_dc(data, dc, table)
        _fill_ac(data, ac, table[AC_ENTRIES:])
        _list_codes(data, dc, table[LISTS:])
        _list_codes(data, ac, table[LISTS + LIST :])
    return _without_stuffing(data, frame[_SCAN], codes)


@inlined
def _eight(data, place):
    """The eight bytes from a place on as a number, the first one highest."""
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
    size, place, end = np.uint64(0), np.uint64(start), np.uint64(data.size)
    one = np.uint64(1)
    while place < end:
        while place + _U8 < end:
            word = _eight(data, place)
            if (~word - np.uint64(0x0101010101010101)) & word & np.uint64(0x8080808080808080):  # one of them is 0xFF
                break
            for step in range(8):
                codes[size + np.uint64(step)] = data[place + np.uint64(step)]
            size, place = size + _U8, place + _U8
        level = np.uint8(0)
        while place < end and level != 0xFF:
            level = data[place]
            codes[size] = level
            size, place = size + one, place + one
        if level == 0xFF:
            if place >= end or data[place] != 0:
                size -= one
                break
            place += one
    for step in range(SPARE):
        codes[size + np.uint64(step)] = 0
    return np.int64(size)


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
    """By the next bits: bits of the code and its level, level's bits << 8; or 0 where the code is longer."""
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
    """By the next bits, from the lowest bit of an entry on:

    6 bits used, 7 the steps to the coefficient, 7 the steps from it to a second one that the same bits hold, 6 the
    level, 6 the second one's. Without a second one, no steps and the first one's level once more.
    Where the level has more than five bits or is not all there: bits used and LONG, steps, 7 unused, the level's bits.
    Where the code is longer than the bits: LONG alone.
    """
    for entry in range(1 << AC_BITS):
        table[entry] = LONG
    code, place = 0, start + 16
    for length in range(1, AC_BITS + 1):
        for _ in range(data[start + length - 1]):
            run, size, free = np.int64(data[place]) >> 4, np.int64(data[place]) & 15, AC_BITS - length
            steps = run + 1 if size or run == 15 else 64  # 64: the block ends
            if size > min(free, 5):
                for entry in range(code << free, (code + 1) << free):
                    table[entry] = (size << 20) | (steps << 6) | LONG | (length + size)
            else:
                free -= size
                for bits in range(1 << size):
                    level = bits if size == 0 or bits >= 1 << (size - 1) else bits + 1 - (1 << size)
                    first = ((code << size) + bits) << free
                    for entry in range(first, first + (1 << free)):
                        table[entry] = ((level & 63) << 20) | (steps << 6) | (length + size)
            code, place = code + 1, place + 1
        code *= 2
    _pair(table)


@compiled
def _pair(table):
    """Adds the second ones."""
    single = table[: 1 << AC_BITS].copy()
    for bits in range(1 << AC_BITS):
        one = np.int64(single[bits])
        if one & LONG:
            continue
        level, used, after = (one >> 20) & 63, one & 31, 0
        two = np.int64(single[(bits << used) & ((1 << AC_BITS) - 1)])
        if (one >> 6) & 127 < 64 and not two & LONG and used + (two & 31) <= AC_BITS:
            level, used, after = (two >> 20) & 63, used + (two & 31), (two >> 6) & 127
        table[bits] = np.int32((one & ~31) | used | (after << 13) | (level << 26))
