"""Controls of pieces as biases on the logits of ids: key, instruments, tempo, density.

An unwanted id keeps a chance of e^-100: it is drawn only where the grammar allows no other, so that no control
makes a piece impossible. Where an encoding has the same ids for drums as for pitches (`oore`, `mmm`), a key binds
drums too.

In `optimus_int` and `optimus_txt` an id is a time, a pitch or a channel by its place in a note. There keys and programs
are bans in the states of the grammar before pitches and channels, which always leave others to draw; a prompt need not
obey them. Only `optimus_int` knows drums there, as the channel stands before the pitch. Density is the number of notes
that begin together, where no channel has the same id.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from models.sampling.grammar_mask import GrammarTables
from tasks.config.generation import GenerateConfig
from tasks.errors import ConfigError
from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntTokenizer
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtTokenizer
from tasks.music.tokenizers.optimus.value_states import bound_grammar

UNWANTED = -100.0
PITCH = re.compile(r"(?:note_on_|Pitch_|NOTE_ON=|TIE=)(\d+)$")  # a tie to no note begins one
BEGINNING = re.compile(r"(?:set_velocity_|Pitch_|NOTE_ON=)(\d+)$")  # in `oore` a note-on must follow its velocity
PROGRAM = re.compile(r"(?:Program_|INST=)(-?\d+)$")
TEMPO = re.compile(r"Tempo_(\d+(?:\.\d+)?)$")
KEY = re.compile(r"([A-G])(#|b)?\s*(major|minor|m)?$", re.IGNORECASE)
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10, 11)  # natural minor, and its leading note
LETTERS = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))


def token_bias(tokenizer: Any, config: GenerateConfig) -> NDArray[np.float64] | None:
    """Return the bias on the logit of each id, float64[V]; None without controls.

    Raises ConfigError where the encoding has no ids of the kind, or none that is wanted, or the key is unknown.
    """
    if not (config.key or config.programs or config.tempo or config.density):
        return None
    if config.sampling.beams:
        raise ConfigError("key, programs, tempo and density change how ids are drawn, but sampling.beams draws none")
    bias = np.zeros(tokenizer.vocab_size)
    names = [tokenizer.token_name(token) for token in range(tokenizer.vocab_size)]
    if config.density and knows_places(tokenizer) and tokenizer.together_id is not None:
        bias[tokenizer.together_id] += config.density
    elif config.density:
        bias[_numbers(names, BEGINNING, "density", tokenizer) >= 0] += config.density
    if config.key and not knows_places(tokenizer):
        bias[unwanted(_numbers(names, PITCH, "key", tokenizer), "pitch", config)] = UNWANTED
    if config.programs and not knows_places(tokenizer):
        bias[unwanted(_numbers(names, PROGRAM, "programs", tokenizer), "program", config)] = UNWANTED
    if config.tempo:
        tempos = _numbers(names, TEMPO, "tempo", tokenizer, float)
        nearest = tempos[np.argmin(np.where(tempos >= 0, np.abs(tempos - config.tempo), np.inf))]
        bias[(tempos >= 0) & (tempos != nearest)] = UNWANTED
    return bias


def knows_places(tokenizer: Any) -> TypeGuard[OptimusIntTokenizer | OptimusTxtTokenizer]:
    """Return whether what an id means depends on its place in a note, which the tokenizer's grammar knows."""
    return isinstance(tokenizer, OptimusIntTokenizer | OptimusTxtTokenizer)


def bind(tokenizer: Any, grammar: Grammar, config: GenerateConfig) -> Grammar | None:
    """Return a grammar that bans other keys and programs by place; None where biases on ids do it.

    Its second half is for the drawn ids, see `bound_grammar`. Raises ConfigError as `token_bias`.
    """
    if not knows_places(tokenizer) or not (config.key or config.programs):
        return None
    bans = []
    kinds: tuple[tuple[Literal["pitch", "program"], str], ...] = (("pitch", "key"), ("program", "programs"))
    for kind, control in kinds:
        if getattr(config, control):
            found = [states for states in tokenizer.value_states if states.kind == kind]
            if not found:
                raise _unsupported(control, tokenizer)
            bans += [(states, unwanted(states.values, kind, config)) for states in found]
    return bound_grammar(grammar, bans)


class BoundTables(GrammarTables):
    """A grammar of `bind`: a prompt walks through its first half, the drawn ids through the second."""

    __slots__ = ()

    def follow(self, ids: Sequence[int], where: str = "") -> tuple[int, set[int]]:
        """Return the first state of the drawn ids, and the open slots, after the ids of a prompt."""
        state, open_slots = super().follow(ids, where)
        return state + len(self.next_state_SV) // 2, open_slots

    def to(self, device: torch.device | str) -> "BoundTables":
        """Return the same grammar on another device."""
        moved = super().to(device)
        return BoundTables(*(getattr(moved, field.name) for field in fields(moved)))


def unwanted(values: NDArray[Any], kind: Literal["pitch", "program"], config: GenerateConfig) -> NDArray[np.bool_]:
    """Return which ids are pitches outside of the key, or other programs; ConfigError where all of them are.

    `values` holds the pitch or program of each id, -1 for none.
    """
    if kind == "pitch":
        is_wanted, control = np.isin(values % 12, scale_of(config.key)), f"key={config.key}"
    else:
        is_wanted, control = np.isin(values, config.programs), f"programs={config.programs}"
    is_of_kind = values >= 0
    if not np.any(is_of_kind & is_wanted):
        known = ", ".join(f"{value:g}" for value in np.unique(values[is_of_kind]))
        raise ConfigError(f"generate.{control}: no id of the encoding is that; known: {known}")
    return is_of_kind & ~is_wanted


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
    names: list[str], pattern: re.Pattern[str], control: str, tokenizer: Any, kind: Callable[[str], float] = int
) -> NDArray[Any]:
    """Return the number in the name of each id of a kind, -1 for all others."""
    found = [pattern.match(name) for name in names]
    if not any(found):
        raise _unsupported(control, tokenizer)
    return np.array([kind(match[1]) if match else -1 for match in found])


def _unsupported(control: str, tokenizer: Any) -> ConfigError:
    return ConfigError(f"generate.{control}: encoding {tokenizer.name} has no ids that say it")
