"""The Prefect tasks of a rebuild. Ray's workers import the stages without this file and without Prefect."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from tasks.config.dataset import DatasetConfig
from tasks.dataset import analyse, encode, upkeep, versions
from tasks.dataset.leakage import LeakageReport
from tasks.dataset.ledger import Ledger, allow_licences, build_ledger, check_leakage
from tasks.dataset.publish import dataset_name, holds_names, plan_tokens, publish_version, version_of
from tasks.dataset.versions import DatasetVersion
from tasks.errors import DatasetError, plural
from tasks.ingest import song_shards
from tasks.ingest.sources.read import refuse_lost
from tasks.ingest.sources.sample_corpus import write_sample_corpus
from tasks.ingest.sources.scan import Scan, carry_vanished, scan_sources
from tasks.ingest.sources.secrets import keep_sources
from tasks.runtime import cluster
from tasks.runtime.prefect_tasks import HEALS, artifact_key, show_progress
from tasks.runtime.progress import Progress
from tasks.storage import integrity
from tasks.storage.home import Home

logger = logging.getLogger(__name__)

MAX_RESCANS = 2  # of a rebuild with changing sources; files that are still lost are then rejected
MAX_ROUNDS = 12  # of parsing, rescans included


@dataclass(frozen=True, slots=True)
class Inputs:
    """The input of a rebuild."""

    config: DatasetConfig  # with its name and sources filled in
    scan: Scan
    version: str

    def folder(self, home: Home) -> Path:
        return home.datasets / self.config.name


@dataclass(frozen=True, slots=True)
class Songs:
    """The distinct contents of the inputs, their song shards and their analysis."""

    contents: song_shards.Contents
    shards: list[song_shards.SongShard]
    analysis: analyse.Analysis


@task(name="find-inputs", **HEALS)
def find_inputs(config: DatasetConfig, home: Home) -> Inputs:
    """Find and hash the sources' files; without a source, write the sample corpus first."""
    name = dataset_name(config)
    if not config.sources:
        write_sample_corpus(home.sample_corpus, with_flaws=True)
        config = replace(config, sources=(str(home.sample_corpus),))
    config = replace(config, name=name, sources=keep_sources(config.sources, home.address_key))
    return _inputs(config, _scan(config, home))


def _scan(config: DatasetConfig, home: Home) -> Scan:
    with show_progress("scanning", 0, "files") as progress:
        scan = scan_sources(
            config.sources, home.cache, config.source_limits, config.rehash, cluster.n_cpus(), progress.advance
        )
    return replace(scan, files=allow_licences(scan.files, config.licences))


def _inputs(config: DatasetConfig, scan: Scan) -> Inputs:
    return Inputs(config, scan, version_of(config, scan.files))


@task(name="find-inputs-again", **HEALS)
def find_inputs_again(home: Home, inputs: Inputs, lost: frozenset[str], n_rescans: int) -> Inputs:
    """Scan again after files vanished or changed during a rebuild; after `MAX_RESCANS`, refuse the lost files.

    A file that vanished is a row `vanished`. One that changed is read as it is now; if it changes again and again, it
    is a row `changed`.
    """
    hashes = [bytes.fromhex(text) for text in sorted(lost)]
    if n_rescans <= MAX_RESCANS:
        logger.warning("%s went or changed since the scan; scanning again", plural(len(lost), "file"))
        return _inputs(inputs.config, carry_vanished(inputs.scan, _scan(inputs.config, home), hashes))
    logger.warning("%s went or changed again: rejected", plural(len(lost), "file"))
    return _inputs(inputs.config, replace(inputs.scan, files=refuse_lost(inputs.scan.files, hashes)))


def read_songs(home: Home, inputs: Inputs) -> tuple[Inputs, Songs]:
    """Parse and analyse the inputs, and scan again while the sources change; return the inputs that were read."""
    for n_rescans in range(1, MAX_ROUNDS + 1):
        songs = parse_songs(home, inputs)
        if isinstance(songs, Songs):
            return inputs, songs
        inputs = find_inputs_again(home, inputs, songs, n_rescans)
    raise DatasetError(
        f"the sources of {inputs.config.name} change faster than they are read, {MAX_ROUNDS} times in a row; rebuild"
        " from a copy of them"
    )


@task(name="find-version", cache_policy=NO_CACHE)
def find_whole_version(home: Home, inputs: Inputs) -> DatasetVersion | None:
    """Return the version if it is published with all its files, and make it the latest of its name."""
    found = versions.usable_version(home, inputs.config.name, inputs.version)
    if found is None or found.missing_files() or not holds_names(found, inputs.scan.files):
        return None
    counts, scan = found.manifest["counts"], inputs.scan
    if (counts["n_other_files"], counts.get("n_homes_left_out", 0)) != (scan.n_other_files, scan.n_homes):
        return None
    with show_progress("checking", upkeep.n_files_of(found), "files") as progress:
        problems = upkeep.verify_version(found, progress.advance)
    for problem in problems:
        logger.warning("%s %s; the version is made again", problem.path, problem.problem)
    if problems:
        return None
    versions.note_latest(home, found.name, found.version)
    return found


def _check_shards(paths: Sequence[Path]) -> None:
    """Check the shards of earlier rebuilds and delete damaged ones."""
    here = [path for path in paths if path.exists()]
    with show_progress("checking", len(here), "files") as progress:
        integrity.drop_damaged(here, cluster.n_cpus(), progress.advance)


@task(name="parse-songs", **HEALS)
def parse_songs(home: Home, inputs: Inputs) -> Songs | frozenset[str]:
    """Parse and analyse the missing shards; return the lost contents instead, if there are any."""
    folder, files = inputs.folder(home), inputs.scan.files
    contents = song_shards.distinct_contents(files)
    shards = song_shards.plan_song_shards(inputs.config.parse, contents, folder / "songs")
    _check_shards([shard.path for shard in shards])
    missing = [shard.n_files for shard in shards if not shard.path.exists()]
    if missing:
        with Progress("preparing the readers"):
            song_shards.start_workers()  # before the progress starts, whose rate is that of the work
    with show_progress("parsing", sum(missing), "files") as progress:
        parsed = song_shards.build_song_shards(shards, progress.advance)
    if parsed.lost:
        return parsed.lost
    logger.info("songs: %s, %d new", plural(len(shards), "shard"), len(missing))
    planned = analyse.plan_analysis([shard.path for shard in shards], folder / "analysis")
    _check_shards([shard.path for shard in planned])
    n_missing = sum(not shard.path.exists() for shard in planned)
    with show_progress("analysing", n_missing, "shards") as progress:
        analyse.build_analysis(planned, progress.advance)
    logger.info("analysis: %s, %d new", plural(len(planned), "shard"), n_missing)
    with Progress("reading the analysis"):
        return Songs(contents, shards, analyse.read_analysis(planned))


@task(name="account-for-files", cache_policy=NO_CACHE)
def account_for_files(inputs: Inputs, songs: Songs) -> tuple[Ledger, LeakageReport]:
    """Decide the state and the split of every file, and check for leaks between splits."""
    with Progress("grouping pieces"):
        ledger = build_ledger(
            inputs.config, inputs.scan.files, songs.contents, songs.shards, songs.analysis, cluster.run_apart
        )
    with Progress("looking for leakage"):
        return ledger, check_leakage(inputs.config, ledger, songs.analysis, cluster.run_apart)


@task(name="encode-tokens", **HEALS)
def encode_and_publish(
    home: Home, inputs: Inputs, songs: Songs, ledger: Ledger, leakage: LeakageReport
) -> DatasetVersion:
    """Augment and encode the missing shards, and publish the version."""
    with Progress("planning the tokens"):
        tokens = plan_tokens(inputs.config, ledger, songs.shards, inputs.folder(home))
    _check_shards([shard.path for shard in tokens])
    missing = [len(shard.pieces) for shard in tokens if not shard.path.exists()]
    with show_progress("encoding", sum(missing), "pieces") as progress:
        encode.build_token_shards(tokens, progress.advance)
    logger.info("tokens: %s, %d new", plural(len(tokens), "shard"), len(missing))
    with Progress("publishing"):
        return publish_version(
            home, inputs.config, inputs.version, inputs.scan.n_other_files, ledger, leakage, songs.shards,
            songs.analysis.shards, tokens, inputs.scan.n_homes,
        )  # fmt: skip


@task(name="write-report", cache_policy=NO_CACHE)
def write_dataset_report(dataset: DatasetVersion, inputs: Inputs, songs: Songs, ledger: Ledger) -> Path:
    """Write the report of a version."""
    from tasks.dataset.report import build  # which imports Jinja2

    wanted = build.report_inputs(dataset, inputs.scan.files, ledger, songs.analysis)
    with Progress("writing the report"):
        return cluster.run_apart(build.write_dataset_report, wanted)


def link_report(dataset: DatasetVersion) -> None:
    """Link the report of a version in Prefect; do nothing outside of a flow run or without a report."""
    if FlowRunContext.get() and dataset.report.exists():
        create_link_artifact(
            key=artifact_key("report", dataset.name),
            link=dataset.report.as_uri(),
            link_text=f"{dataset.reference}: the report",
            description="The same page is an artifact of the rebuild's run in MLflow.",
        )
