"""The catalog of public datasets: address, licence, and what the publishers say of them.

A size or checksum stands here only if it was read somewhere, which `checksum_from` names. No address was tried while
this table was made, since the machine it was made on reaches no such server (`address_checked`).
"""

import difflib
from dataclasses import dataclass

from tasks.errors import NotFound

_RAFFEL = (
    "Colin Raffel. Learning-Based Methods for Comparing Sequences, with Applications to Audio-to-MIDI Alignment and"
    " Matching. PhD thesis, Columbia University, 2016."
)
_TFDS = "tensorflow/datasets, tensorflow_datasets/datasets/groove/checksums.tsv"
_MUSPY = "salu133445/muspy, muspy/datasets"


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """One public set."""

    name: str
    title: str
    page: str  # for people
    addresses: tuple[str, ...]  # tried in turn; none where it has to be fetched by hand
    licence: str  # SPDX identifier where there is one, otherwise words
    citation: str
    n_files: int | None = None  # MIDI files, as the publisher counts them
    n_bytes: int | None = None  # of the download; None: not published
    sha256: str = ""  # empty: not published
    checksum_from: str = ""  # where size and checksum were read
    split_table: str = ""  # member of the archive with the official split
    split_columns: tuple[str, str] = ("", "")  # its columns: file, relative to the table's folder; split
    split_folders: bool = False  # folders named train, valid, test are the official split
    address_checked: bool = False
    remarks: str = ""

    def check_downloadable(self) -> None:
        """Raise NotFound if there is no address that a program could fetch."""
        if not self.addresses:
            raise NotFound(
                f"catalog entry {self.name} has to be fetched by hand ({self.remarks}); get it from {self.page} and"
                f" give the file's path, with #licence={self.licence}"
            )


def _github(repository: str, commit: str) -> tuple[str, ...]:
    return (f"https://github.com/{repository}/archive/{commit}.zip",)


CATALOG = (
    CatalogEntry(
        name="js-fakes",
        title="JS Fake Chorales: 500 generated four-part chorales, and 500 more in the extended set",
        page="https://github.com/omarperacha/js-fakes",
        addresses=_github("omarperacha/js-fakes", "68b476d5b265"),
        licence="CC-BY-4.0",
        citation="Omar Peracha. JS Fake Chorales: a Synthetic Dataset of Polyphonic Music with Human Annotation. 2021.",
        remarks="a snapshot of the repository; GitHub publishes no checksum of such archives",
    ),
    CatalogEntry(
        name="jsb-chorales",
        title="JSB Chorales: 382 four-part chorales by J. S. Bach, with the split of Allan and Williams",
        page="http://www-etud.iro.umontreal.ca/~boulanni/icml2012",
        addresses=("http://www-etud.iro.umontreal.ca/~boulanni/JSB%20Chorales.zip",),
        licence="not stated; the works are in the public domain",
        citation=(
            "Nicolas Boulanger-Lewandowski, Yoshua Bengio, Pascal Vincent. Modeling Temporal Dependencies in"
            " High-Dimensional Sequences. ICML 2012."
        ),
        n_files=382,
        n_bytes=215_242,
        sha256="69924294546a71620c06374085cd6b0300665ea215e2f854f65a11929f1e723c",
        checksum_from=f"{_MUSPY}/jsb.py; the publisher gives none",
        split_folders=True,
        remarks="ticks per quarter are written as 100 where 120 is meant (muspy)",
    ),
    CatalogEntry(
        name="nottingham",
        title="Nottingham Music Database, cleaned by Jukedeck: British and American folk tunes with chords",
        page="https://github.com/jukedeck/nottingham-dataset",
        addresses=_github("jukedeck/nottingham-dataset", "0992bb6cd864f6d4b90d6663e08c0ef53ffaa08f"),
        licence="GPL-3.0",
        citation="Eric Foxley. Nottingham Music Database. Cleaned and converted to MIDI by Jukedeck, 2017.",
        remarks=(
            "a snapshot of the repository; it holds each tune three times: whole, chords alone (MIDI/chords), melody"
            " alone (MIDI/melody)"
        ),
    ),
    CatalogEntry(
        name="pop909",
        title="POP909: piano arrangements of 909 Chinese pop songs, melody, bridge and piano as tracks",
        page="https://github.com/music-x-lab/POP909-Dataset",
        addresses=_github("music-x-lab/POP909-Dataset", "d83e6edba687"),
        licence="MIT",
        citation="Ziyu Wang et al. POP909: A Pop-song Dataset for Music Arrangement Generation. ISMIR 2020.",
        remarks="a snapshot of the repository; `versions` folders hold further arrangements of the same songs",
    ),
    CatalogEntry(
        name="maestro-v3",
        title="MAESTRO v3.0.0: virtuosic piano performances, MIDI only",
        page="https://magenta.tensorflow.org/datasets/maestro",
        addresses=("https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/maestro-v3.0.0-midi.zip",),
        licence="CC-BY-NC-SA-4.0",
        citation=(
            "Curtis Hawthorne et al. Enabling Factorized Piano Music Modeling and Generation with the MAESTRO Dataset."
            " ICLR 2019."
        ),
        n_files=1276,
        n_bytes=58_416_533,
        sha256="70470ee253295c8d2c71e6d9d4a815189e35c89624b76d22fce5a019d5dde12c",
        checksum_from=f"{_MUSPY}/maestro.py",
        split_table="maestro-v3.0.0/maestro-v3.0.0.csv",
        split_columns=("midi_filename", "split"),
    ),
    CatalogEntry(
        name="groove",
        title="Groove MIDI Dataset v1.0.0: human drumming, MIDI only",
        page="https://magenta.tensorflow.org/datasets/groove",
        addresses=("https://storage.googleapis.com/magentadata/datasets/groove/groove-v1.0.0-midionly.zip",),
        licence="CC-BY-4.0",
        citation="Jon Gillick et al. Learning to Groove with Inverse Sequence Transformations. ICML 2019.",
        n_files=1150,
        n_bytes=3_260_318,
        sha256="651cbc524ffb891be1a3e46d89dc82a1cecb09a57c748c7b45b844c4841dcc1e",
        checksum_from=_TFDS,
        split_table="groove/info.csv",
        split_columns=("midi_filename", "split"),
    ),
    CatalogEntry(
        name="asap",
        title="ASAP: aligned scores and performances of Western classical piano music",
        page="https://github.com/fosfrancesco/asap-dataset",
        addresses=_github("fosfrancesco/asap-dataset", "afc815c75c42"),
        licence="CC-BY-NC-SA-4.0",
        citation=(
            "Francesco Foscarin et al. ASAP: a dataset of aligned scores and performances for piano transcription."
            " ISMIR 2020."
        ),
        remarks="a snapshot of the repository; 236 scores (midi_score.mid) stand beside 1068 performances",
    ),
    CatalogEntry(
        name="lakh-full",
        title="Lakh MIDI Dataset, LMD-full: 176,581 files from the web, by content",
        page="https://colinraffel.com/projects/lmd/",
        addresses=("http://hog.ee.columbia.edu/craffel/lmd/lmd_full.tar.gz",),
        licence="CC-BY-4.0",
        citation=_RAFFEL,
        n_files=176_581,
        n_bytes=1_768_163_879,
        sha256="6fcfe2ac49ca08f3f214cec86ab138d4fc4dabcd7f27f491a838dae6db45a12b",
        checksum_from=f"{_MUSPY}/lmd.py; the publisher gives none",
        remarks="the licence is the collection's; a few thousand files are corrupt, says its publisher",
    ),
    CatalogEntry(
        name="lakh-clean",
        title="Lakh MIDI Dataset, clean MIDI subset: files named by artist and title",
        page="https://colinraffel.com/projects/lmd/",
        addresses=("http://hog.ee.columbia.edu/craffel/lmd/clean_midi.tar.gz",),
        licence="CC-BY-4.0",
        citation=_RAFFEL,
        remarks="the licence is the collection's",
    ),
    CatalogEntry(
        name="los-angeles",
        title="Los Angeles MIDI Dataset, version 4.0",
        page="https://huggingface.co/datasets/projectlosangeles/Los-Angeles-MIDI-Dataset",
        addresses=(
            "https://huggingface.co/datasets/projectlosangeles/Los-Angeles-MIDI-Dataset/resolve/main/"
            "Los-Angeles-MIDI-Dataset-Ver-4-0-CC-BY-NC-SA.zip",
        ),
        licence="CC-BY-NC-SA-4.0",
        citation="Aleksandr Lev. Los Angeles MIDI Dataset: SOTA kilo-scale MIDI dataset for MIR and Music AI purposes.",
        remarks="about 9 GB; the version of the licence is not in the archive's name",
    ),
    CatalogEntry(
        name="giantmidi",
        title="GiantMIDI-Piano: 10,854 transcriptions of recordings of classical piano music",
        page="https://github.com/bytedance/GiantMIDI-Piano/blob/master/disclaimer.md",
        addresses=(),
        licence="CC-BY-4.0",
        citation=(
            "Qiuqiang Kong et al. GiantMIDI-Piano: A large-scale MIDI dataset for classical piano music."
            " arXiv:2010.07061, 2020."
        ),
        n_files=10_854,
        remarks="its publisher asks for agreement to a disclaimer; about 193 MB",
    ),
)


def catalog_names() -> list[str]:
    """Return the names of all entries."""
    return [entry.name for entry in CATALOG]


def is_in_catalog(name: str) -> bool:
    """Return whether there is an entry of that name, in any case."""
    return name.strip().lower() in catalog_names()


def find_entry(name: str) -> CatalogEntry:
    """Return the entry of that name, in any case.

    Raises:
        NotFound: there is none; the message lists the nearest names, or all.
    """
    for entry in CATALOG:
        if entry.name == name.strip().lower():
            return entry
    near = difflib.get_close_matches(name.lower(), catalog_names(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(catalog_names())}"
    raise NotFound(f"catalog has no entry {name!r}; {hint}")
