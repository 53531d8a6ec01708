"""What pieces shall be like, as numbers added to the logits of ids: key, instruments, tempo, density.

An id that is unwanted keeps a chance of e^-100: it is drawn only where the grammar leaves nothing else, so that no wish
can make a piece impossible. Where an encoding has the same ids for drums as for pitches (`oore`, `mmm`), a key binds
drums too.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.config import GenerateConfig
from tasks.errors import ConfigError

UNWANTED = -100.0
PITCH = re.compile(r"(?:note_on_|Pitch_|NOTE_ON=)(\d+)$")
BEGINNING = re.compile(r"(?:set_velocity_|Pitch_|NOTE_ON=)(\d+)$")  # in `oore` a note-on must follow its velocity
PROGRAM = re.compile(r"(?:Program_|INST=)(-?\d+)$")
TEMPO = re.compile(r"Tempo_(\d+(?:\.\d+)?)$")
KEY = re.compile(r"([A-G])(#|b)?\s*(major|minor|m)?$", re.IGNORECASE)
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10, 11)  # natural minor, and its leading note
LETTERS = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))


def token_bias(tokenizer: Any, config: GenerateConfig) -> NDArray[np.float64] | None:
    """Return what is added to the logit of each id, float64[V]; None where nothing is asked for.

    Raises:
        ConfigError: the encoding has no ids of the kind, or none that is wanted; or no such key is known.
    """
    if not (config.key or config.programs or config.tempo or config.density):
        return None
    if config.sampling.beams:
        raise ConfigError("key, programs, tempo and density change how ids are drawn, but sampling.beams draws none")
    bias = np.zeros(tokenizer.vocab_size)
    names = [tokenizer.token_name(token) for token in range(tokenizer.vocab_size)]
    if config.density:
        bias[_numbers(names, BEGINNING, "density", tokenizer) >= 0] += config.density
    if config.key:
        pitches = _numbers(names, PITCH, "key", tokenizer)
        _refuse(bias, pitches, np.isin(pitches % 12, scale_of(config.key)), "key", config.key)
    if config.programs:
        programs = _numbers(names, PROGRAM, "programs", tokenizer)
        _refuse(bias, programs, np.isin(programs, config.programs), "programs", config.programs)
    if config.tempo:
        tempos = _numbers(names, TEMPO, "tempo", tokenizer, float)
        nearest = tempos[np.argmin(np.where(tempos >= 0, np.abs(tempos - config.tempo), np.inf))]
        _refuse(bias, tempos, tempos == nearest, "tempo", config.tempo)
    return bias


def scale_of(key: str) -> list[int]:
    """Return the pitch classes of a key such as `C`, `F# minor` or `Bb major`; ConfigError where it is none."""
    found = KEY.match(key.strip())
    if found is None:
        raise ConfigError(f"generate.key={key!r} is no key; write it like C, F# minor or Bb major")
    letter, accidental, mode = found.groups()
    tonic = LETTERS[letter.upper()] + {"#": 1, "b": -1, None: 0}[accidental and accidental.lower()]
    is_minor = mode == "m" or (mode or "").lower() == "minor"
    return sorted((tonic + step) % 12 for step in (MINOR if is_minor else MAJOR))


def _numbers(
    names: list[str], pattern: re.Pattern[str], wish: str, tokenizer: Any, kind: Callable[[str], float] = int
) -> NDArray[Any]:
    """Return the number in the name of each id of a kind, -1 for all others."""
    found = [pattern.match(name) for name in names]
    if not any(found):
        raise ConfigError(f"generate.{wish}: encoding {tokenizer.name} has no ids that say it")
    return np.array([kind(match[1]) if match else -1 for match in found])


def _refuse(
    bias: NDArray[np.float64], numbers: NDArray[Any], is_wanted: NDArray[np.bool_], wish: str, value: Any
) -> None:
    is_of_kind = numbers >= 0
    if not np.any(is_of_kind & is_wanted):
        known = ", ".join(f"{number:g}" for number in np.unique(numbers[is_of_kind]))
        raise ConfigError(f"generate.{wish}={value}: no id of the encoding is that; known: {known}")
    bias[is_of_kind & ~is_wanted] = UNWANTED
