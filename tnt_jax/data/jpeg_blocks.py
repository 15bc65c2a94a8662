"""From a JPEG's Huffman codes to levels of its components, in compiled loops, level for level as libjpeg does it.

The codes are read by ITU-T T.81 (F.2.2); those of blocks outside the wanted part too, as what follows cannot be found
without. The inverse cosine transform is libjpeg's accurate one in whole numbers (Loeffler, Ligtenberg and Moschytz,
"Practical fast 1-D DCT algorithms with 11 multiplications", 1989; 13 binary places, 2 kept between the directions); one
processor instruction works on sixteen blocks of a row. A row of MCUs is read and transformed before the next one, while
it is in the processor's nearest memory.
"""

import numpy as np

from tnt_jax.data import jpeg_header, jpeg_tables
from tnt_jax.data.compiled import compiled, inlined
from tnt_jax.data.jpeg_header import LANES
from tnt_jax.data.jpeg_tables import AC_BITS, AC_ENTRIES, DC_BITS, LIST, LISTS, LONG, TABLES, eight, table_of

GROUP = 65 * LANES  # coefficients of LANES blocks, and a place for what is beyond a block's end

_PLACES = 13  # binary places of the transform's factors
_KEPT = 2  # binary places kept between its two directions
_int32 = np.int32  # around each result, as Numba calculates with 64 bits
_U0, _U1, _U63 = (np.uint64(number) for number in (0, 1, 63))

_ORDER = np.array(  # zigzag: coefficients as they come in a file
    [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6]
    + [7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31]
    + [39, 46, 53, 60, 61, 54, 47, 55, 62, 63]
)
# Where the k-th coefficient is stored; k is beyond 63 after the code for a block's end.
_STORED = (np.concatenate([_ORDER, np.full(128, 64)]) * LANES).astype(np.uint16)


@compiled
def decode(data, frame, plan, codes, size, tables, found, levels):
    """Fills levels with a part of the image -> whether its codes were sound and all there.

    data uint8 [n] is the file, frame read_frame's, plan jpeg_header.plan's; size, codes and tables are
    jpeg_tables.prepare's. found int16 [(ROW_GROUPS + 1) * GROUP] is used inside. levels uint8 [ALL_GROUPS * 64 * LANES]
    are the components' lines after each other, a line as long as its row of groups.

    One function, long as it is: with the inner loop in one of its own it takes a tenth longer, even inlined.
    """
    top, bottom = plan[jpeg_header.TOP], plan[jpeg_header.BOTTOM]
    left, right = plan[jpeg_header.LEFT], plan[jpeg_header.RIGHT]
    blocks, steps, starts = _layout(data, frame, plan)
    between = np.empty(64 * LANES, np.int32)
    waste = plan[jpeg_header.ROW_GROUPS] * GROUP
    for place in range(waste + GROUP):  # Numba fills slower by a slice
        found[place] = 0
    before = np.zeros(3, np.int64)
    across = frame[jpeg_header.ACROSS]
    wide = (frame[jpeg_header.WIDTH] + 8 * across - 1) // (8 * across)
    place, held, bits = _U0, _U0, _U0  # the next byte; bits to come, the first one highest; how many they are
    for row in range(bottom):
        for column in range(wide):
            inside = top <= row and left <= column < right
            for block in range(len(blocks)):
                component, table = blocks[block, 0], np.uint64(blocks[block, 4])
                start = waste
                if inside:
                    lane = (column - left) * blocks[block, 1] + blocks[block, 2]
                    start = (blocks[block, 3] + lane // LANES) * GROUP + lane % LANES
                # The first coefficient, as the difference from the block before
                held, place, bits = _more(codes, held, place, bits)
                entry = np.uint64(tables[table + (held >> np.uint64(64 - DC_BITS))])
                used, length = entry & _U63, entry >> np.uint64(8)
                if not entry:
                    symbol, used = _long_code(held, tables, table + np.uint64(LISTS))
                    if symbol < 0:
                        return False
                    length = np.uint64(symbol & 15)
                    used += length
                before[component] += _level(held, used, length)
                held, bits = held << used, bits - used
                found[start] = before[component]
                # The others
                at, entries, k = np.uint64(start), table + np.uint64(AC_ENTRIES), _U0
                while k < _U63:
                    held, place, bits = _more(codes, held, place, bits)
                    for _ in range(56 // AC_BITS):
                        signed = np.int64(tables[entries + (held >> np.uint64(64 - AC_BITS))])
                        entry = np.uint64(signed)
                        one = k + ((entry >> np.uint64(7)) & _U63)
                        two = one + ((entry >> np.uint64(13)) & _U63)
                        found[at + np.uint64(_STORED[one])] = (signed << 38) >> 58
                        found[at + np.uint64(_STORED[two])] = signed >> (20 if two == one else 26)
                        used = entry & _U63
                        if two < _U63:
                            k, held, bits = two, held << used, bits - used
                            continue
                        # The block ends, or the entry is LONG, or its second coefficient is the next block's first
                        if not entry & np.uint64(LONG) and (one != _U63 or two == one):
                            last = entry >> np.uint64(7 if two == one else 13) & _U63
                            if (two != _U63 and last != _U63) or (one > _U63 and two != one):
                                return False  # it does not end here, but lies beyond the block
                            k, held, bits = two, held << used, bits - used
                            break
                        held, place, bits = _more(codes, held, place, bits)
                        used, length = entry & _U63, (entry >> np.uint64(20)) & np.uint64(15)
                        if not entry & np.uint64(LONG) or not used:
                            symbol, used = _long_code(held, tables, table + np.uint64(LISTS + LIST))
                            if symbol < 0:
                                return False
                            length = np.uint64(symbol & 15)
                            used += length
                            one = k + np.uint64((symbol >> 4) + 1 if symbol & 15 or symbol == 0xF0 else 64)
                        if one > _U63 and one < k + np.uint64(64):
                            return False  # beyond the block
                        k = one
                        found[at + np.uint64(_STORED[k])] = _level(held, used, length)
                        held, bits = held << used, bits - used
                        break
            if place > np.uint64(size + 16):
                return False
        if row >= top:
            _transform_row(found, steps, between, plan, frame[jpeg_header.DOWN], starts, levels)
    return np.int64(place) * 8 - np.int64(bits) <= size * 8


@compiled
def _layout(data, frame, plan):
    """-> blocks int64 [blocks of an MCU, 5], steps int32 [components, 64], starts int64 [components].

    blocks: component; its blocks in a row of the MCU; this one's column therein; the first group of its row; where its
    tables begin. steps: of quantisation, by coefficient. starts: of a component's levels.
    """
    count, across, down = frame[jpeg_header.COMPONENTS], frame[jpeg_header.ACROSS], frame[jpeg_header.DOWN]
    blocks = np.zeros((across * down + count - 1, 5), np.int64)
    steps, starts = np.zeros((count, 64), np.int32), np.zeros(count, np.int64)
    place, groups, levels = 0, 0, 0
    for number in range(count):
        wide, tall = (across, down) if number == 0 else (1, 1)
        length = plan[jpeg_header.GROUPS + number]
        starts[number] = levels
        for block in range(wide * tall):
            blocks[place, 0], blocks[place, 1], blocks[place, 2] = number, wide, block % wide
            blocks[place, 3] = groups + block // wide * length
            blocks[place, 4] = TABLES * table_of(frame, number)
            place += 1
        groups += tall * length
        levels += (plan[jpeg_header.BOTTOM] - plan[jpeg_header.TOP]) * tall * length * 64 * LANES
        for k in range(64):
            steps[number, _ORDER[k]] = data[frame[jpeg_header.QUANTIZATION + number] + k]
    return blocks, steps, starts


@inlined
def _more(codes, held, place, bits):
    """Fills the held bits up to 56 or more."""
    held |= eight(codes, place) >> bits
    return held, place + ((_U63 - bits) >> np.uint64(3)), bits | np.uint64(56)


@inlined
def _long_code(held, tables, codes):
    """-> the symbol of the code that comes, by the codes of each length (F.2.2.3), or -1 for none; and its bits."""
    top, length = np.int64(held >> np.uint64(48)), _U1
    while length < np.uint64(16) and top >= tables[codes + length - _U1]:
        length += _U1
    symbol = np.int64(-1)
    if top < tables[codes + length - _U1]:
        value = np.uint64((top >> np.int64(np.uint64(16) - length)) + tables[codes + np.uint64(15) + length])
        symbol = np.int64(tables[codes + np.uint64(jpeg_tables.VALUES) + (value & np.uint64(255))])
    return symbol, length


@inlined
def _level(held, used, length):
    """The signed number (EXTEND, F.2.2.1) in the last `length` of the first `used` bits."""
    level = held << (used - length)
    negative = (np.int64(level) >> np.int64(63)) ^ np.int64(-1)
    return np.int64((level >> _U1) >> (_U63 - length)) - (negative & np.int64((_U1 << length) - _U1))


@compiled
def _transform_row(found, steps, between, plan, down, starts, levels):
    """A row of MCUs: coefficients to levels at the components' starts, which move on; found is zero again."""
    group = 0
    for number in range(len(steps)):
        line = plan[jpeg_header.GROUPS + number]
        for _ in range(1 if number else down):
            for place in range(line):
                coefficients = found[group * GROUP : (group + 1) * GROUP]
                _columns(coefficients, steps[number], between)
                for k in range(64 * LANES):
                    coefficients[k] = 0
                _lines(between, levels, starts[number] + place * 8 * LANES, line * 8 * LANES)
                group += 1
            starts[number] += line * 64 * LANES


@compiled
def _columns(coefficients, steps, between):
    """Columns of LANES blocks, int16 [64 * LANES], times steps [64], transformed -> between int32 [64 * LANES]."""
    half, places = 1 << (_PLACES - _KEPT - 1), _PLACES - _KEPT
    for column in range(8):
        s0, s1, s2, s3 = steps[column], steps[column + 8], steps[column + 16], steps[column + 24]
        s4, s5, s6, s7 = steps[column + 32], steps[column + 40], steps[column + 48], steps[column + 56]
        at = column * LANES
        for lane in range(LANES):
            x0 = _int32(coefficients[at + lane] * s0)
            x1 = _int32(coefficients[at + lane + 8 * LANES] * s1)
            x2 = _int32(coefficients[at + lane + 16 * LANES] * s2)
            x3 = _int32(coefficients[at + lane + 24 * LANES] * s3)
            x4 = _int32(coefficients[at + lane + 32 * LANES] * s4)
            x5 = _int32(coefficients[at + lane + 40 * LANES] * s5)
            x6 = _int32(coefficients[at + lane + 48 * LANES] * s6)
            x7 = _int32(coefficients[at + lane + 56 * LANES] * s7)
            y0, y1, y2, y3, y4, y5, y6, y7 = _transform(x0, x1, x2, x3, x4, x5, x6, x7)
            between[at + lane] = _int32(y0 + half) >> places
            between[at + lane + 8 * LANES] = _int32(y1 + half) >> places
            between[at + lane + 16 * LANES] = _int32(y2 + half) >> places
            between[at + lane + 24 * LANES] = _int32(y3 + half) >> places
            between[at + lane + 32 * LANES] = _int32(y4 + half) >> places
            between[at + lane + 40 * LANES] = _int32(y5 + half) >> places
            between[at + lane + 48 * LANES] = _int32(y6 + half) >> places
            between[at + lane + 56 * LANES] = _int32(y7 + half) >> places


@compiled
def _lines(between, levels, start, length):
    """Rows of LANES blocks, int32 [64 * LANES], transformed -> their levels, in lines of `length` from start on."""
    for row in range(8):
        line = levels[start + row * length : start + row * length + 8 * LANES]
        first = 8 * LANES * row
        for lane in range(LANES):
            y0, y1, y2, y3, y4, y5, y6, y7 = _transform(
                between[first + lane],
                between[first + 1 * LANES + lane],
                between[first + 2 * LANES + lane],
                between[first + 3 * LANES + lane],
                between[first + 4 * LANES + lane],
                between[first + 5 * LANES + lane],
                between[first + 6 * LANES + lane],
                between[first + 7 * LANES + lane],
            )
            line[8 * lane] = _to_level(y0)
            line[8 * lane + 1] = _to_level(y1)
            line[8 * lane + 2] = _to_level(y2)
            line[8 * lane + 3] = _to_level(y3)
            line[8 * lane + 4] = _to_level(y4)
            line[8 * lane + 5] = _to_level(y5)
            line[8 * lane + 6] = _to_level(y6)
            line[8 * lane + 7] = _to_level(y7)


@compiled
def _to_level(value):
    """Of _transform's result in both directions: rounded, moved up by 128 and clipped."""
    places = _PLACES + _KEPT + 3
    level = _int32(_int32(value + (1 << (places - 1)) + (128 << places)) >> places)
    return min(max(level, _int32(0)), _int32(255))


@compiled
def _transform(x0, x1, x2, x3, x4, x5, x6, x7):
    """Eight int32 coefficients -> eight levels, with 13 binary places more (without the factor sqrt(1/8))."""
    both = _int32((x2 + x6) * 4433)
    c, d = _int32(both - x6 * 15137), _int32(both + x2 * 6270)
    a, b = _int32((x0 + x4) << _PLACES), _int32((x0 - x4) << _PLACES)
    e0, e1, e2, e3 = _int32(a + d), _int32(b + c), _int32(b - c), _int32(a - d)
    z1, z2, z3, z4 = _int32(x7 + x1), _int32(x5 + x3), _int32(x7 + x3), _int32(x5 + x1)
    z5 = _int32((z3 + z4) * 9633)
    z1, z2 = _int32(z1 * -7373), _int32(z2 * -20995)
    z3, z4 = _int32(z3 * -16069 + z5), _int32(z4 * -3196 + z5)
    o0 = _int32(x7 * 2446 + z1 + z3)
    o1 = _int32(x5 * 16819 + z2 + z4)
    o2 = _int32(x3 * 25172 + z2 + z3)
    o3 = _int32(x1 * 12299 + z1 + z4)
    return (
        _int32(e0 + o3),
        _int32(e1 + o2),
        _int32(e2 + o1),
        _int32(e3 + o0),
        _int32(e3 - o0),
        _int32(e2 - o1),
        _int32(e1 - o2),
        _int32(e0 - o3),
    )
