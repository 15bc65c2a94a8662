"""The header of a baseline JPEG, and which blocks a part of the image needs, in compiled loops.

After ITU-T T.81 (names in capitals are its).
"""

import numpy as np

from tnt_jax.data.compiled import compiled, quick

# Places in the frame that `read_frame` gives. The last three are those of the first component; the others' follow.
HEIGHT, WIDTH, COMPONENTS, ACROSS, DOWN, SCAN, QUANTIZATION, DC, AC = 0, 1, 2, 3, 4, 5, 6, 9, 12
FIELDS = 15

# Places in what `plan` gives. GROUPS: the first component's; the others' follow.
TOP, LEFT, BOTTOM, RIGHT, GROUPS, ROW_GROUPS, ALL_GROUPS = 0, 1, 2, 3, 4, 7, 8
LANES = 16  # blocks of a group, side by side

_VALUES = 256
_LONGEST = 65_500  # lines or columns, of libjpeg
_JFIF, _ADOBE = np.frombuffer(b"JFIF\0", np.uint8), np.frombuffer(b"Adobe", np.uint8)


@quick
def read_frame(data):
    """data uint8 [n], a file -> int64 [FIELDS] (the places above), or 0 for the height where another decoder must do.

    ACROSS and DOWN: blocks of the first component in an MCU. SCAN: where the codes begin. The other places: where a
    component's table begins. What is read: SOF0 with 8 bits, grey or YCbCr, one scan, colours in full or halved in
    columns or both directions, no restart intervals.
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
            jfif = jfif or (length >= 16 and _begins(data, first, _JFIF))
        elif marker == 0xEE and length >= 14 and _begins(data, first, _ADOBE):
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
def _begins(data, first, name):
    for place in range(name.size):
        if data[first + place] != name[place]:
            return False
    return True


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
        frame[QUANTIZATION + number] = data[place + 2]
        if data[place + 2] > 3 or not 0 < across < 5 or not 0 < down < 5:
            return False
        if number == 0:
            frame[ACROSS], frame[DOWN] = (across, down) if count == 3 else (1, 1)
        elif across != 1 or down != 1:
            return False
    full = frame[ACROSS] == 1 and frame[DOWN] == 1
    halved = frame[ACROSS] == 2 and (frame[DOWN] == 1 or frame[DOWN] == 2) and frame[WIDTH] > 4
    return 0 < frame[HEIGHT] <= _LONGEST and 0 < frame[WIDTH] <= _LONGEST and (full or halved)


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
        codes = data[frame[DC + number] : frame[DC + number] + 16].sum()
        for place in range(frame[DC + number] + 16, frame[DC + number] + 16 + codes):
            if data[place] > 15:
                return False
    return data[end - 3] == 0 and data[end - 2] == 63 and data[end - 1] == 0


@quick
def plan(frame, top, left, height, width):
    """A part of the image -> int64 [9] (the places above).

    TOP, LEFT, BOTTOM, RIGHT: its first row and column of MCUs, and those after its last. GROUPS: groups of LANES blocks
    in each component's rows of blocks. ROW_GROUPS: groups in a row of MCUs, ALL_GROUPS: in the part.
    """
    found, across, down = np.zeros(9, np.int64), frame[ACROSS], frame[DOWN]
    edge = 2 * (down - 1), 2 * (across - 1)  # halved colours are smoothed with their neighbours
    found[TOP] = max(top - edge[0], 0) // (8 * down)
    found[LEFT] = max(left - edge[1], 0) // (8 * across)
    found[BOTTOM] = (min(top + height + edge[0], frame[HEIGHT]) - 1) // (8 * down) + 1
    found[RIGHT] = (min(left + width + edge[1], frame[WIDTH]) - 1) // (8 * across) + 1
    wide = found[RIGHT] - found[LEFT]
    for number in range(frame[COMPONENTS]):
        blocks = wide * across if number == 0 else wide
        found[GROUPS + number] = (blocks + LANES - 1) // LANES
        found[ROW_GROUPS] += found[GROUPS + number] * (down if number == 0 else 1)
    found[ALL_GROUPS] = found[ROW_GROUPS] * (found[BOTTOM] - found[TOP])
    return found
