"""The sounds of the synthesiser as tables: one timbre per General MIDI program, one drum per percussion key."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Timbre:
    """One kind of sound. A partial of ratio k has amplitude `k^-tilt * exp(-k f0 / cutoff_hz)`, or the one listed."""

    ratios: tuple[float, ...] = tuple(range(1, 49))
    amplitudes: tuple[float, ...] = ()
    tilt: float = 1.0
    cutoff_hz: float = 2500.0
    strike: float = 0.0  # 1 / place of the hammer or finger on the string, which silences every such partial; 0: none
    stiffness: float = 0.0  # stretches the partials of middle C by sqrt(1 + stiffness k^2)
    decay_seconds: float = 0.0  # time to fall by 60 dB at middle C, half of it an octave and a half above; 0: sustained
    damping: float = 0.15  # how much faster each higher partial falls
    ringing: float = 0.0  # share of the amplitude that falls four times as slowly
    detune_cents: float = 0.0  # distance of a second voice
    knock: float = 0.0  # amplitude of the thud of the action
    attack_seconds: float = 0.003
    release_seconds: float = 0.12
    gain: float = 1.0


TIMBRES = {
    "piano": Timbre(
        tilt=0.55,
        cutoff_hz=1500,
        strike=7.4,
        stiffness=3.5e-4,
        decay_seconds=2.4,
        damping=0.16,
        ringing=0.3,
        detune_cents=0.7,
        knock=0.05,
        attack_seconds=0.002,
        release_seconds=0.2,
    ),
    "electric_piano": Timbre(
        ratios=(1, 2, 3, 4, 7.1, 13.8),
        amplitudes=(1, 0.35, 0.1, 0.06, 0.05, 0.05),
        decay_seconds=4,
        damping=0.4,
        detune_cents=1.5,
        release_seconds=0.15,
    ),
    "harpsichord": Timbre(
        tilt=0.35, cutoff_hz=4500, strike=9.3, stiffness=1e-4, decay_seconds=3, release_seconds=0.07, gain=0.7
    ),
    "bells": Timbre(
        ratios=(1, 2.76, 5.4, 8.93),
        amplitudes=(1, 0.45, 0.2, 0.08),
        decay_seconds=5,
        damping=0.5,
        detune_cents=1,
        release_seconds=0.6,
        gain=0.8,
    ),
    "bars": Timbre(
        ratios=(1, 3.93, 9.2),
        amplitudes=(1, 0.3, 0.1),
        decay_seconds=0.9,
        damping=0.8,
        knock=0.06,
        attack_seconds=0.002,
        release_seconds=0.2,
    ),
    "organ": Timbre(
        ratios=(0.5, 1, 1.5, 2, 3, 4, 6, 8),
        amplitudes=(0.4, 1, 0.25, 0.6, 0.3, 0.35, 0.12, 0.1),
        detune_cents=2,
        attack_seconds=0.012,
        release_seconds=0.07,
        gain=0.7,
    ),
    "free_reed": Timbre(tilt=0.8, cutoff_hz=2200, detune_cents=7, attack_seconds=0.03, release_seconds=0.08, gain=0.7),
    "guitar": Timbre(
        tilt=0.7,
        cutoff_hz=1900,
        strike=5.3,
        stiffness=5e-5,
        decay_seconds=3,
        ringing=0.2,
        damping=0.22,
        detune_cents=0.8,
        release_seconds=0.12,
    ),
    "driven_guitar": Timbre(
        tilt=0.6,
        cutoff_hz=2600,
        strike=6.5,
        decay_seconds=14,
        damping=0.03,
        detune_cents=5,
        release_seconds=0.08,
        gain=0.6,
    ),
    "bass": Timbre(
        tilt=0.8,
        cutoff_hz=650,
        strike=4.3,
        decay_seconds=2.2,
        damping=0.2,
        ringing=0.2,
        knock=0.03,
        release_seconds=0.08,
        gain=1.1,
    ),
    "strings": Timbre(tilt=0.9, cutoff_hz=2400, detune_cents=8, attack_seconds=0.07, release_seconds=0.25, gain=0.7),
    "plucked": Timbre(
        tilt=0.8, cutoff_hz=2300, strike=3.6, decay_seconds=1.1, damping=0.25, ringing=0.15, release_seconds=0.25
    ),
    "choir": Timbre(tilt=1.2, cutoff_hz=1300, detune_cents=10, attack_seconds=0.12, release_seconds=0.3, gain=0.8),
    "brass": Timbre(tilt=0.5, cutoff_hz=1500, detune_cents=4, attack_seconds=0.04, release_seconds=0.1, gain=0.7),
    "reed": Timbre(tilt=0.7, cutoff_hz=2000, detune_cents=2.5, attack_seconds=0.03, release_seconds=0.09, gain=0.7),
    "clarinet": Timbre(
        ratios=tuple(range(1, 24, 2)), tilt=0.7, cutoff_hz=2200, attack_seconds=0.035, release_seconds=0.09, gain=0.8
    ),
    "flute": Timbre(
        ratios=(1, 2, 3, 4, 5),
        amplitudes=(1, 0.3, 0.12, 0.04, 0.02),
        detune_cents=2.5,
        attack_seconds=0.05,
        release_seconds=0.1,
        gain=0.9,
    ),
    "lead": Timbre(tilt=1.0, cutoff_hz=3800, detune_cents=6, attack_seconds=0.01, release_seconds=0.07, gain=0.6),
    "square_lead": Timbre(
        ratios=tuple(range(1, 32, 2)),
        tilt=1.0,
        cutoff_hz=3800,
        detune_cents=4,
        attack_seconds=0.01,
        release_seconds=0.07,
        gain=0.6,
    ),
    "pad": Timbre(tilt=1.1, cutoff_hz=1600, detune_cents=11, attack_seconds=0.25, release_seconds=0.5, gain=0.7),
    "membrane": Timbre(
        ratios=(1, 1.5, 1.99, 2.44, 2.9),
        amplitudes=(1, 0.5, 0.35, 0.2, 0.12),
        decay_seconds=1.2,
        damping=0.3,
        knock=0.1,
        release_seconds=0.3,
    ),
}

# General MIDI programs 0-127, in runs.
PROGRAM_TIMBRES: tuple[str, ...] = tuple(
    name
    for name, n_programs in (
        ("piano", 4), ("electric_piano", 2), ("harpsichord", 2), ("bells", 4), ("bars", 2), ("bells", 2), ("organ", 5),
        ("free_reed", 3), ("guitar", 5), ("driven_guitar", 2), ("guitar", 1), ("bass", 8), ("strings", 5),
        ("plucked", 2), ("membrane", 1), ("strings", 4), ("choir", 3), ("strings", 1), ("brass", 8), ("reed", 7),
        ("clarinet", 1), ("flute", 8), ("square_lead", 1), ("lead", 7), ("pad", 16), ("plucked", 4), ("bars", 1),
        ("free_reed", 1), ("strings", 1), ("reed", 1), ("bells", 3), ("bars", 1), ("membrane", 3), ("pad", 9),
    )
    for _ in range(n_programs)
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Drum:
    """One drum: a gliding sine (or several) and a band of noise, each with its own time to fall by 60 dB."""

    tone_hz: tuple[float, ...] = ()
    glide: float = 1.0  # ratio of the first to the last frequency of the tone
    tone_seconds: float = 0.3
    tone_gain: float = 1.0
    noise_hz: tuple[float, float] = (0.0, 0.0)  # ends of the band
    noise_seconds: float = 0.2
    noise_gain: float = 0.0
    pan: float = 0.0


def _tom(tone_hz: float, pan: float) -> Drum:
    return Drum(tone_hz=(tone_hz, tone_hz * 1.52), glide=1.5, tone_seconds=0.55, tone_gain=0.9, noise_hz=(150, 2500),
                noise_seconds=0.08, noise_gain=0.25, pan=pan)  # fmt: skip


def _cymbal(noise_seconds: float, low_hz: float, gain: float, pan: float) -> Drum:
    return Drum(tone_hz=(3140, 4270, 5230, 6310, 7790), tone_seconds=noise_seconds * 0.6, tone_gain=0.12 * gain,
                noise_hz=(low_hz, 11_000), noise_seconds=noise_seconds, noise_gain=gain, pan=pan)  # fmt: skip


def struck(tone_hz: float, seconds: float, pan: float = 0.0) -> Drum:
    """Return a drum of wood or skin with a fundamental of `tone_hz`."""
    return Drum(tone_hz=(tone_hz, tone_hz * 1.48), glide=1.06, tone_seconds=seconds, tone_gain=0.6,
                noise_hz=(tone_hz, tone_hz * 4), noise_seconds=0.03, noise_gain=0.15, pan=pan)  # fmt: skip


def _shaken(noise_seconds: float, low_hz: float, pan: float = 0.0) -> Drum:
    return Drum(noise_hz=(low_hz, 11_000), noise_seconds=noise_seconds, noise_gain=0.45, pan=pan)


_KICK = Drum(tone_hz=(47,), glide=3.4, tone_seconds=0.4, tone_gain=1.5, noise_hz=(800, 4000), noise_seconds=0.02,
             noise_gain=0.3)  # fmt: skip
_SNARE = Drum(tone_hz=(182, 331), glide=1.25, tone_seconds=0.16, tone_gain=0.55, noise_hz=(900, 9000),
              noise_seconds=0.28, noise_gain=0.8, pan=0.05)  # fmt: skip
_CLAP = Drum(noise_hz=(900, 3200), noise_seconds=0.25, noise_gain=0.9, pan=-0.1)

# General MIDI percussion keys; every other key sounds as a short wood block, higher keys higher.
DRUMS: dict[int, Drum] = {
    35: _KICK, 36: _KICK, 37: struck(820, 0.06, 0.05), 38: _SNARE, 39: _CLAP, 40: _SNARE,
    41: _tom(78, 0.45), 43: _tom(92, 0.35), 45: _tom(112, 0.2), 47: _tom(136, 0.05),
    48: _tom(162, -0.15), 50: _tom(196, -0.3),
    42: _cymbal(0.09, 6500, 0.55, -0.3), 44: _cymbal(0.07, 5500, 0.4, -0.3), 46: _cymbal(0.5, 6000, 0.5, -0.3),
    49: _cymbal(2.2, 2800, 0.8, 0.4), 57: _cymbal(1.9, 3400, 0.8, -0.45), 55: _cymbal(0.9, 4200, 0.7, 0.3),
    52: _cymbal(1.5, 2200, 0.8, 0.35), 51: _cymbal(1.1, 5200, 0.35, 0.4), 59: _cymbal(1.0, 5600, 0.35, 0.45),
    53: Drum(tone_hz=(1430, 2370, 3640), tone_seconds=0.8, tone_gain=0.35, pan=0.4),
    54: _shaken(0.16, 6000, 0.2), 69: _shaken(0.07, 5500, -0.2), 70: _shaken(0.06, 6500, 0.25), 82: _shaken(0.12, 5000),
    56: Drum(tone_hz=(562, 845), tone_seconds=0.28, tone_gain=0.6, pan=0.2),
    60: struck(420, 0.16, -0.25), 61: struck(310, 0.2, -0.2), 62: struck(330, 0.1, 0.25), 63: struck(270, 0.35, 0.25),
    64: struck(200, 0.4, 0.3), 65: struck(390, 0.3, -0.2), 66: struck(290, 0.35, -0.15),
    67: Drum(tone_hz=(1090, 1640), tone_seconds=0.35, tone_gain=0.5, pan=-0.3),
    68: Drum(tone_hz=(805, 1210), tone_seconds=0.4, tone_gain=0.5, pan=-0.3),
    75: struck(2450, 0.08), 76: struck(1180, 0.1, 0.2), 77: struck(820, 0.12, 0.2),
    80: Drum(tone_hz=(5010, 6530), tone_seconds=0.15, tone_gain=0.25, pan=-0.4),
    81: Drum(tone_hz=(5010, 6530), tone_seconds=1.8, tone_gain=0.25, pan=-0.4),
}  # fmt: skip
