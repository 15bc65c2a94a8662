"""Every row of the paper's Tables 5, 6, 7, 8 and 12 and any combination: TNT-S on ImageNet with the unchanged recipe.

Command:  python main.py --config=configs/ablations.py:words=64 --workdir=runs/words_64
          The argument is one or more of these, separated by commas:
            blocks=all|none|1,4,8,12      blocks with an inner path, numbers from 1 to 12; none is DeiT-S (Table 5)
            sentence_position=true|false  position encodings of the sentences (Table 6)
            word_position=true|false      position encodings of the words (Table 6)
            inner_heads=1|2|4|6|8         heads of the inner attention, or another number that divides C (Table 7)
            words=64|16|4                 words per sentence M, with C = 6|24|96, so that M * C stays 384 (Table 8)
            se=true|false                 squeeze-and-excitation (Table 12)
          Both encodings off: --config=configs/ablations.py:sentence_position=false,word_position=false
Hardware: not yet run
Time:     not yet run
Accuracy: not yet run. Published top-1 in %: TNT-S 81.5; blocks=1,4,8,12 81.4, 1,6,12 81.3, 1,6 81.1, 1 80.8, none 79.8;
          sentence_position=false 80.7, word_position=false 80.8, both 80.5; inner_heads=1 81.0, 2 81.4, 6 81.3, 8 81.1;
          words=64 81.0, 4 81.1; se=true 81.7
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import default

DEPTH = 12
# Words per sentence -> pixels of a word's side, C, inner heads. Table 8 does not give the heads: TNT-S's four do not
# divide 6, and of the numbers that do, 2 ranks next best in Table 7.
WORDS = {"64": (2, 6, 2), "16": (4, 24, 4), "4": (8, 96, 4)}
SWITCHES = {"true": True, "false": False}
ACCEPTED = {
    "blocks": f"all, none, or different block numbers from 1 to {DEPTH}, such as blocks=1,4,8,12",
    "sentence_position": "true or false",
    "word_position": "true or false",
    "inner_heads": "a whole number that divides the words' width C (24; 6 with words=64, 96 with words=4)",
    "words": "64, 16 or 4",
    "se": "true or false",
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """An argument such as "words=64" or "blocks=1,6,se=true" -> the recipe of configs/default.py with that TNT-S.

    Raises ValueError for an empty argument, an unknown or repeated key, a value that the key does not accept, or a key
    of the inner path with blocks=none; each message has what is accepted.
    """
    chosen = parse(argument, ACCEPTED, "configs/ablations.py")
    config = default.get_config()
    model = config.model
    model.name = "tnt_s_patch16_224"
    blocks = blocks_of(chosen.get("blocks", "all"), DEPTH)
    if blocks == ():
        useless = [key for key in ("word_position", "inner_heads", "words") if key in chosen]
        if useless:
            raise ValueError(f"blocks=none has no inner path, so {' and '.join(useless)} must be left out beside it.")
        model.name = "deit_small_patch16_224"  # with DeiT's biases on queries, keys and values, and its epsilon
    elif blocks is not None:
        model.tnt_blocks = blocks
    if "words" in chosen:
        model.word_size, model.inner_dim, model.inner_num_heads = look_up("words", chosen["words"], WORDS)
    if "inner_heads" in chosen:
        inner_dim = model.inner_dim or WORDS["16"][1]
        model.inner_num_heads = look_up("inner_heads", chosen["inner_heads"], divisors(inner_dim))
    for key in ("sentence_position", "word_position", "se"):
        if key in chosen:
            model["squeeze_excitation" if key == "se" else key] = look_up(key, chosen[key], SWITCHES)
    return config


def parse(argument: str, accepted: Mapping[str, str], file: str) -> dict[str, str]:
    """ "blocks=1,6,se=true" -> {"blocks": "1,6", "se": "true"}: a piece without "=" belongs to the key before it.

    accepted: the keys, and in words what each accepts. Raises ValueError with these and the config's file.
    """
    chosen: dict[str, str] = {}
    for piece in argument.split(","):
        key, equals, value = piece.partition("=")
        if not equals and chosen:
            chosen[list(chosen)[-1]] += "," + piece
        elif key in accepted and key not in chosen:
            chosen[key] = value
        else:
            keys = "; ".join(f"{key}= {values}" for key, values in accepted.items())
            problem = (
                f"{key!r} is {'given twice' if key in chosen else 'not known'}"
                if argument
                else "an argument is missing"
            )
            raise ValueError(f"{file}: {problem}. These are accepted, one or several with commas between them: {keys}.")
    return chosen


def look_up(key: str, value: str, accepted: Mapping[str, Any]) -> Any:
    """Returns what the value stands for. Raises ValueError, with the accepted values, if it is none of them."""
    if value not in accepted:
        raise ValueError(f"{key}={value}: must be one of {', '.join(accepted)}.")
    return accepted[value]


def blocks_of(value: str, depth: int) -> tuple[int, ...] | None:
    """ "1,6" -> (1, 6); "none" -> (); "all" -> None, the values of model.tnt_blocks."""
    if value in ("all", "none"):
        return None if value == "all" else ()
    numbers = {str(number): number for number in range(1, depth + 1)}
    names = value.split(",")
    if len(set(names)) < len(names) or any(name not in numbers for name in names):
        raise ValueError(f"blocks={value}: must be all, none, or different block numbers from 1 to {depth}.")
    return tuple(sorted(numbers[name] for name in names))


def divisors(width: int) -> dict[str, int]:
    """Returns the numbers of heads that divide a width, by name."""
    return {str(number): number for number in range(1, width + 1) if width % number == 0}
