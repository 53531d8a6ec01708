"""Published augmentations by name."""

from tasks.config.dataset import AugmentConfig
from tasks.errors import ConfigError

NO_AUGMENTATION = AugmentConfig(transpositions=(0,), stretches=(1.0,))


# By the name of where they come from; `dataset.augment.<field>` changes any of them.
AUGMENTATIONS: dict[str, AugmentConfig] = {
    "none": NO_AUGMENTATION,
    # S004: five transpositions with five stretches.
    "oore": AugmentConfig(),
    # Music Transformer on MAESTRO (Huang et al. 2018): seven transpositions with five stretches.
    "maestro": AugmentConfig(transpositions=tuple(range(-3, 4)), stretches=(0.95, 0.975, 1.0, 1.025, 1.05)),
    # S003: each copy moves by a random interval, and apart from that gets louder or softer, with probability 0.1 each.
    "hourglass": AugmentConfig(
        transpositions=tuple(range(-12, 13)),
        stretches=(1.0,),
        velocity_shifts=tuple(range(-4, 5)),
        n_sampled=8,
        change_probability=0.1,
    ),
}


def augmentation(name: str) -> AugmentConfig:
    """Return a published augmentation; ConfigError where none has that name."""
    if name not in AUGMENTATIONS:
        raise ConfigError(f"unknown augmentation {name!r}; known: {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]
