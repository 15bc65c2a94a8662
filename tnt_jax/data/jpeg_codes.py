"""The header and the Huffman codes of a baseline JPEG, in compiled loops: bytes to quantised coefficients.

After ITU-T T.81 (names in capitals are its). A code is looked up with the bits that follow it: one look gives the
coefficient, or two of them where both codes are short. Coefficients are stored as the next stage (jpeg_pixels.py) wants
them, sixteen blocks side by side; those outside the wanted part are read, as what follows cannot be found without, and
stored one over the other.
"""

import numpy as np

from tnt_jax.data.compiled import compiled, inlined

# Places in the frame that `read_frame` gives. The last three are those of the first component; the others' follow.
HEIGHT, WIDTH, COMPONENTS, ACROSS, DOWN, SCAN, QUANTIZATION, DC, AC = 0, 1, 2, 3, 4, 5, 6, 9, 12
FIELDS = 15

LANES = 16  # blocks side by side
GROUP = 65 * LANES  # coefficients of so many blocks, and a place for what is beyond a block's end

_DC_BITS, _AC_BITS = 9, 12  # looked up at once
SPARE = 2048  # zeros behind the codes: more than damaged codes can take between two checks
_VALUES = 256
_U0, _U63, _U64 = np.uint64(0), np.uint64(63), np.uint64(64)

_ORDER = np.array(
    [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28]
    + [35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54]
    + [47, 55, 62, 63]
)
# Where the k-th coefficient is stored (zigzag order); k is beyond 63 after the code for a block's end.
_STORED = (np.concatenate([_ORDER, np.full(128, 64)]) * LANES).astype(np.uint16)


@compiled
def read_frame(data):
    """data uint8 [n], a file -> int64 [FIELDS] (the places above), or 0 for the height where another decoder must do.

    ACROSS and DOWN: blocks of the first component in an MCU. SCAN: where the codes begin. The other places: where a
    component's table begins. What is read: SOF0 with 8 bits, grey or YCbCr, one scan, colours in full or halved in one
    or both directions, no restart intervals.
    """
    frame, nothing = np.zeros(FIELDS, np.int64), np.zeros(FIELDS, np.int64)
    tables = np.zeros(12, np.int64)  # by their number: four of quantisation, four DC, four AC
    identifiers = np.zeros(3, np.int64)
    jfif, adobe, place, size = False, False, 2, data.size
    if size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return nothing
    while place + 4 <= size:
        marker, length = data[place + 1], (np.int64(data[place + 2]) << 8) + data[place + 3]
        first, end = place + 4, place + 2 + length
        if data[place] != 0xFF or length < 2 or end > size:
            return nothing
        if marker == 0xDB or marker == 0xC4:
            if not _note_tables(data, first, end, marker == 0xC4, tables):
                return nothing
        elif marker == 0xC0:
            if frame[HEIGHT] or not _note_components(data, first, end, frame, identifiers):
                return nothing
        elif marker == 0xDA:
            good = _note_scan(data, first, end, frame, identifiers, tables)
            named = identifiers[0] == 1 and identifiers[1] == 2 and identifiers[2] == 3
            if not good or (frame[COMPONENTS] == 3 and not jfif and not adobe and not named):
                return nothing
            frame[SCAN] = end
            return frame
        elif marker == 0xE0:
            jfif = jfif or (length >= 7 and data[first] == 0x4A and data[first + 1] == 0x46 and data[first + 2] == 0x49)
        elif marker == 0xEE and length >= 14 and data[first] == 0x41 and data[first + 1] == 0x64:
            adobe = data[first + 11] == 1
            if not adobe and not jfif:
                return nothing
        elif marker == 0xDD:
            if length != 4 or data[first] or data[first + 1]:
                return nothing
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            return nothing
        place = end
    return nothing


@compiled
def _note_tables(data, first, end, huffman, tables):
    """Notes where the tables of a segment DQT or DHT begin -> whether they are as they should be."""
    while first < end:
        kind, number = data[first] >> 4, data[first] & 15
        count = 64
        if huffman:
            count, code = 16, 0
            if first + 17 > end:
                return False
            for length in range(16):
                count += data[first + 1 + length]
                code = 2 * code + data[first + 1 + length]
                if code >= 2 << length:  # more codes than there are; the one of ones alone is not used
                    return False
        if number > 3 or kind > (1 if huffman else 0) or count > 16 + _VALUES or first + 1 + count > end:
            return False
        tables[number + (4 + 4 * kind if huffman else 0)] = first + 1
        first += 1 + count
    return first == end


@compiled
def _note_components(data, first, end, frame, identifiers):
    count = np.int64(data[first + 5]) if first + 6 <= end else 0
    if (count != 1 and count != 3) or end - first != 6 + 3 * count or data[first] != 8:
        return False
    frame[HEIGHT] = (np.int64(data[first + 1]) << 8) + data[first + 2]
    frame[WIDTH] = (np.int64(data[first + 3]) << 8) + data[first + 4]
    frame[COMPONENTS] = count
    for number in range(count):
        place = first + 6 + 3 * number
        identifiers[number] = data[place]
        across, down = data[place + 1] >> 4, data[place + 1] & 15
        frame[QUANTIZATION + number] = data[place + 2] & 3
        if number == 0:
            frame[ACROSS], frame[DOWN] = (across, down) if count == 3 else (1, 1)
        elif across != 1 or down != 1:
            return False
    full = frame[ACROSS] == 1 and frame[DOWN] == 1
    halved = frame[ACROSS] == 2 and (frame[DOWN] == 1 or frame[DOWN] == 2) and frame[WIDTH] > 4
    return frame[HEIGHT] > 0 and frame[WIDTH] > 0 and (full or halved)


@compiled
def _note_scan(data, first, end, frame, identifiers, tables):
    count = frame[COMPONENTS]
    if not count or end - first != 4 + 2 * count or data[first] != count:
        return False
    for number in range(count):
        which, selected = data[first + 1 + 2 * number], data[first + 2 + 2 * number]
        frame[QUANTIZATION + number] = tables[frame[QUANTIZATION + number]]
        frame[DC + number] = tables[4 + ((selected >> 4) & 3)]
        frame[AC + number] = tables[8 + (selected & 3)]
        missing = not frame[QUANTIZATION + number] or not frame[DC + number] or not frame[AC + number]
        if which != identifiers[number] or missing or selected & 0xCC:
            return False
    return data[end - 3] == 0 and data[end - 2] == 63 and data[end - 1] == 0


@compiled
def coefficients(data, frame, first, last, groups, codes, found):
    """-> coefficients int16 [groups of all + 1, GROUP] of a part of the image, or none [0, GROUP]: the codes are damaged.

    first, last: the part's first MCU and the one after its last, each row and column. groups int64 [components]: groups
    of blocks in a row of blocks. Rows of blocks follow each other, a component's after the one's before. Coefficient c
    (8 * row + column) of the block at column b is in group b // LANES, at c * LANES + b % LANES. The last group is waste.
    """
    count, across, down = frame[COMPONENTS], frame[ACROSS], frame[DOWN]
    size = _without_stuffing(data, frame[SCAN], codes)
    dc, ac = np.zeros(count << _DC_BITS, np.int32), np.zeros(count << _AC_BITS, np.int32)
    limits, values = np.zeros(2 * count * 32, np.int64), np.zeros(2 * count * _VALUES, np.uint8)
    tables = np.array([0, 1, 1 if frame[DC + 2] == frame[DC + 1] and frame[AC + 2] == frame[AC + 1] else 2])
    for number in range(min(count, tables[2] + 1)):
        for kind in range(2):
            table = 2 * number + kind
            _list_codes(data, frame[(AC if kind else DC) + number], limits[32 * table :], values[_VALUES * table :])
        _fill_dc(data, frame[DC + number], dc[number << _DC_BITS :])
        _fill_ac(data, frame[AC + number], ac[number << _AC_BITS :])
    blocks = np.zeros((across * down + count - 1, 6), np.int64)  # of an MCU
    place, total = 0, 0
    for number in range(count):
        wide, tall = (across, down) if number == 0 else (1, 1)
        for block in range(wide * tall):
            blocks[place, :3] = number, wide, block % wide
            blocks[place, 3:] = total + block // wide * groups[number], tall * groups[number], tables[number]
            place += 1
        total += (last[0] - first[0]) * tall * groups[number]
    found = found[: (total + 1) * GROUP]
    for place in range(found.size):  # Numba fills slower by a slice
        found[place] = 0
    wide = (frame[WIDTH] + 8 * across - 1) // (8 * across)
    if not _decode(codes, size, dc, ac, limits, values, blocks, wide, first, last, found):
        total = -1
    return found[: (total + 1) * GROUP].reshape(-1, GROUP)


@compiled
def _decode(codes, size, dc, ac, limits, values, blocks, wide, first, last, found):
    """Reads the MCUs, `wide` in a row, up to the part's last row -> whether the codes were sound and all there.

    blocks int64 [blocks of an MCU, 6]: component; blocks of it in a row of the MCU; this one's column therein; the first
    group of its row of blocks in the part's first row of MCUs; groups from a row of MCUs to the next; tables of codes.
    """
    waste = found.size - GROUP
    place, held, bits = _U0, _U0, _U0  # the next byte; bits to come, the first one highest; how many they are
    before = np.zeros(4, np.int64)
    for row in range(last[0]):
        for column in range(wide):
            inside = first[0] <= row and first[1] <= column < last[1]
            for block in range(len(blocks)):
                component, table = blocks[block, 0], blocks[block, 5]
                start = waste
                if inside:
                    lane = (column - first[1]) * blocks[block, 1] + blocks[block, 2]
                    group = blocks[block, 3] + (row - first[0]) * blocks[block, 4] + lane // LANES
                    start = group * GROUP + lane % LANES
                # The first coefficient, as the difference from the block before
                held, place, bits = _more(codes, held, place, bits)
                entry = dc[np.uint64(table << _DC_BITS) + (held >> np.uint64(64 - _DC_BITS))]
                if entry:
                    used, level = np.uint64(entry & 63), entry >> 8
                    held, bits = held << used, bits - used
                else:
                    symbol, held, bits = _long_code(held, bits, limits, values, 2 * table)
                    level, held, bits = _level(held, bits, symbol & 15)
                    if symbol < 0:
                        return False
                before[component] += level
                found[start] = before[component]
                # The others
                at, entries, k = np.uint64(start), np.uint64(table << _AC_BITS), _U0
                while k < _U63:
                    held, place, bits = _more(codes, held, place, bits)
                    for _ in range(4):  # 4 * _AC_BITS bits are held
                        entry = ac[entries + (held >> np.uint64(64 - _AC_BITS))]
                        one = k + ((np.uint64(entry) >> np.uint64(6)) & np.uint64(127))
                        two = one + ((np.uint64(entry) >> np.uint64(13)) & np.uint64(127))
                        used = np.uint64(entry) & _U63
                        if entry:
                            found[at + np.uint64(_STORED[one])] = (np.int64(entry) << 38) >> 58
                            found[at + np.uint64(_STORED[two])] = np.int64(entry) >> 26
                            if two < _U63:
                                k, held, bits = two, held << used, bits - used
                                continue
                            if one != _U63 or two == one:  # else the second coefficient is the next block's
                                k, held, bits = two, held << used, bits - used
                                break
                        held, place, bits = _more(codes, held, place, bits)
                        symbol, held, bits = _long_code(held, bits, limits, values, 2 * table + 1)
                        if symbol < 0:
                            return False
                        k += np.uint64((symbol >> 4) + 1) if symbol & 15 or symbol == 0xF0 else _U64
                        level, held, bits = _level(held, bits, symbol & 15)
                        found[at + np.uint64(_STORED[k])] = level
                        break
            if place > np.uint64(size + SPARE // 2):
                return False
    return np.int64(place) * 8 - np.int64(bits) <= size * 8


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


@inlined
def _more(codes, held, place, bits):
    """Fills the held bits up to 56 or more."""
    held |= _eight(codes, place) >> bits
    return held, place + ((_U63 - bits) >> np.uint64(3)), bits | np.uint64(56)


@inlined
def _long_code(held, bits, limits, values, table):
    """-> the symbol of the code that comes, by the code's length (F.2.2.3), or -1 for none; and what is held then."""
    top, length = np.int64(held >> np.uint64(48)), 1
    while length < 16 and top >= limits[np.uint64(32 * table + length - 1)]:
        length += 1
    if top >= limits[np.uint64(32 * table + length - 1)]:
        return np.int64(-1), held, bits
    place = (top >> (16 - length)) + limits[np.uint64(32 * table + 16 + length - 1)]
    symbol = np.int64(values[np.uint64(_VALUES * table + (place & 255))])
    return symbol, held << np.uint64(length), bits - np.uint64(length)


@inlined
def _level(held, bits, size):
    """-> the signed number in the next `size` bits, 0 to 15 (EXTEND, F.2.2.1), and what is held then."""
    if size == 0:
        return np.int64(0), held, bits
    level = np.int64(held >> np.uint64(64 - size))
    if level < 1 << (size - 1):
        level += 1 - (1 << size)
    return level, held << np.uint64(size), bits - np.uint64(size)


@compiled
def _without_stuffing(data, start, codes):
    """-> the scan's bytes without the zeros after 0xFF, up to a marker and with SPARE zeros behind, and how many."""
    size, place, end = _U0, np.uint64(start), np.uint64(data.size)
    one = np.uint64(1)
    while place < end:
        while place + np.uint64(8) < end:
            word = _eight(data, place)
            if (~word - np.uint64(0x0101010101010101)) & word & np.uint64(0x8080808080808080):  # one of them is 0xFF
                break
            for step in range(8):
                codes[size + np.uint64(step)] = data[place + np.uint64(step)]
            size, place = size + np.uint64(8), place + np.uint64(8)
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
def _list_codes(data, start, limits, values):
    """A table's codes by length -> limits [32], values.

    Of 16 bits that begin with a code of length n the number is below limits[n - 1] and no shorter code's limit, and the
    code's place among the values is the code plus limits[16 + n - 1].
    """
    code, place = 0, 0
    for length in range(16):
        count = np.int64(data[start + length])
        code, place = code + count, place + count
        limits[length] = code << (15 - length)
        limits[16 + length] = place - code
        code *= 2
    for symbol in range(place):
        values[symbol] = data[start + 16 + symbol]


@compiled
def _fill_dc(data, start, table):
    """By the next bits: bits used and level << 8, or 0 where the code and its level are longer."""
    code, place = 0, start + 16
    for length in range(1, _DC_BITS + 1):
        for _ in range(data[start + length - 1]):
            size = np.int64(data[place])
            if length + size <= _DC_BITS:
                free = _DC_BITS - length - size
                for bits in range(1 << size):
                    level = bits if size == 0 or bits >= 1 << (size - 1) else bits + 1 - (1 << size)
                    first = (code << (_DC_BITS - length)) + (bits << free)
                    for entry in range(first, first + (1 << free)):
                        table[entry] = (level << 8) | (length + size)
            code, place = code + 1, place + 1
        code *= 2


@compiled
def _fill_ac(data, start, table):
    """By the next bits, 0 where the code and its level are longer than these, or the level has more than five.

    From the lowest bit: 6 bits used, 7 the steps to the coefficient, 7 the steps from it to a second one that the same
    bits hold, 6 the level, 6 the second one's. Without a second one, no steps and the first one's level once more.
    """
    single = np.zeros(1 << _AC_BITS, np.int32)
    code, place = 0, start + 16
    for length in range(1, _AC_BITS + 1):
        for _ in range(data[start + length - 1]):
            run, size = np.int64(data[place]) >> 4, np.int64(data[place]) & 15
            steps = run + 1 if size or run == 15 else 64  # 64: the block ends
            if length + size <= _AC_BITS and size <= 5:
                free = _AC_BITS - length - size
                for bits in range(1 << size):
                    level = bits if size == 0 or bits >= 1 << (size - 1) else bits + 1 - (1 << size)
                    first = (code << (_AC_BITS - length)) + (bits << free)
                    for entry in range(first, first + (1 << free)):
                        single[entry] = ((level & 63) << 20) | (steps << 6) | (length + size)
            code, place = code + 1, place + 1
        code *= 2
    for bits in range(1 << _AC_BITS):
        one = np.int64(single[bits])
        two = np.int64(single[(bits << (one & 63)) & ((1 << _AC_BITS) - 1)])
        if (one >> 6) & 127 < 64 and two and (one & 63) + (two & 63) <= _AC_BITS:
            used, level = (one & 63) + (two & 63), two >> 20
            one = (one & ~63) | used | (((two >> 6) & 127) << 13)
        else:
            level = one >> 20
        table[bits] = np.int32(one | ((level & 63) << 26)) if one else 0
