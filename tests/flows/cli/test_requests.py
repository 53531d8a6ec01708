"""Request files: jobs with settings of their own, and every mistake told with its place."""

import pickle
from pathlib import Path

import pytest

from flows.cli.requests import read_request
from tasks.config.generation import GenerateConfig
from tasks.config.presets import build_preset
from tasks.errors import BadScore, ConfigError, NotFound, OrchestrionError

TOML = """
model = "mine@champion"

[defaults]
n_pieces = 4
sampling.temperature = 0.9

[[jobs]]
name = "preludes"
sampling.top_p = 0.95

[[jobs]]
name = "answers"
model = "other@2"
n_pieces = 2
prompt = "themes/a.mid"
sampling.temperature = 1.1
"""
JSON = """{"model": "mine@champion", "defaults": {"n_pieces": 4, "sampling": {"temperature": 0.9}}, "jobs": [
  {"name": "preludes", "sampling": {"top_p": 0.95}},
  {"name": "answers", "model": "other@2", "n_pieces": 2, "prompt": "themes/a.mid", "sampling": {"temperature": 1.1}}
]}"""


def settings_of(model: str) -> GenerateConfig:
    assert model in ("mine@champion", "other@2", "")
    return build_preset("music_transformer_tiny").generate


@pytest.mark.parametrize(("name", "text"), [("r.toml", TOML), ("r.json", JSON)])
def test_jobs_have_the_defaults_and_their_own_settings(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    one, other = read_request(tmp_path / name, settings_of)
    base = settings_of("").sampling
    assert (one.name, one.model, other.name, other.model) == ("preludes", "mine@champion", "answers", "other@2")
    assert (one.config.n_pieces, other.config.n_pieces) == (4, 2)
    assert (one.config.sampling.temperature, one.config.sampling.top_p) == (0.9, 0.95)
    assert (other.config.sampling.temperature, other.config.sampling.top_p) == (1.1, base.top_p)
    assert one.config.sampling.max_tokens == base.max_tokens
    assert (one.config.prompt, other.config.prompt) == ("", str(tmp_path / "themes" / "a.mid"))


@pytest.mark.parametrize(
    "text",
    [
        '{"defaults": {"sampling.top_p": 0.9}, "jobs": [{"sampling.max_tokens": 99}]}',
        '{"defaults": {"sampling": {"top_p": 0.9}}, "jobs": [{"sampling": {"max_tokens": 99}}]}',
    ],
)
def test_a_dot_in_a_key_leads_to_a_table_in_json_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    (job,) = read_request(tmp_path / "r.json", settings_of)
    assert (job.config.sampling.top_p, job.config.sampling.max_tokens) == (0.9, 99)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ('{"sampling": 5, "sampling.top_p": 0.5}', "'sampling.top_p' and 'sampling' contradict each other"),
        ('{"sampling.top_p": 0.5, "sampling": 5}', "'sampling' is there twice"),
        ('{"sampling.top_p": 0.5, "sampling": {"top_p": 0.7}}', "'sampling' is there twice"),
        ('{"sampling": {"top_p": 0.7}, "sampling.top_p": 0.5}', "'sampling.top_p' is there twice"),
    ],
)
def test_a_setting_that_is_there_twice_is_told(tmp_path: Path, job: str, said: str) -> None:
    (tmp_path / "r.json").write_text(f'{{"jobs": [{job}]}}')
    with pytest.raises(ConfigError, match=rf"r\.json: jobs\[0\]: {said}"):
        read_request(tmp_path / "r.json", settings_of)


def test_tables_without_end_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"r\.json is no JSON"):
        read_request(tmp_path / "r.json", settings_of)


def test_splits_and_whole_paths_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[[jobs]]\nprompt = "split:test"\n[[jobs]]\nprompt = "/music/b.mid"\nsoundfont = "/sounds/c.sf2"\n')
    one, other = read_request(path, settings_of)
    assert (one.config.prompt, other.config.prompt, other.config.soundfont) == (
        "split:test",
        "/music/b.mid",
        "/sounds/c.sf2",
    )
    assert (one.name, other.name) == ("job 0", "job 1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jobs = [", "r.toml is no TOML"),
        ("", "jobs is no list of tables, or an empty one"),
        ("[jobs]\nn_pieces = 2", "jobs is no list of tables"),
        ("[[job]]\nn_pieces = 2", "r.toml: unknown key 'job'; known here: model, defaults, jobs"),
        ('[[jobs]]\nname = "a"\ntemperatur = 1', r"r.toml: jobs\[0\] \(a\): unknown key 'temperatur'; known here: n_p"),
        ("[[jobs]]\nsampling.top_p = 2", r"jobs\[0\]: sampling\.top_p=2 is above 1"),
        ('[[jobs]]\nn_pieces = "many"', r"jobs\[0\]: n_pieces: .*got 'many'"),
        ("[[jobs]]\nn_pieces = 0", r"jobs\[0\]: .*n_pieces=0 is below 1"),
        ('[[jobs]]\nname = "a"\n[[jobs]]\nname = "a"', "two jobs are named 'a'"),
    ],
)
def test_every_mistake_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_request(path, settings_of)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "r.toml",
            '[[jobs]]\nname = "a"\nsampling.temperature = nan',
            r"jobs\[0\] \(a\): sampling.temperature=nan is no f",
        ),
        (
            "r.json",
            '{"jobs": [{"sampling": {"temperature": NaN}}]}',
            r"jobs\[0\]: sampling.temperature=nan is no finite",
        ),
        (
            "r.toml",
            "[defaults]\ndensity = inf\n[[jobs]]\nseed = 1",
            r"r.toml: defaults: density=inf is no finite number",
        ),
        ("r.toml", '[[jobs]]\nname = "../../x"', r"jobs\[0\]: name='../../x' is no name"),
        ("r.json", '{"jobs": [{"name": "a\\u0000b"}]}', r"jobs\[0\]: name='a\\x00b' is no name"),
        ("r.json", '{"jobs": [{"name": ["a"]}]}', r"jobs\[0\]: name=\['a'\] is no text"),
        ("r.toml", "model = 3\n[[jobs]]\nseed = 1", r"r.toml: model=3 is no text"),
        (
            "r.json",
            '{"jobs": [{"' + ".".join("a" * 100_000) + '": 1}]}',
            r"jobs\[0\]: key 'a.a.a.* has more than 32 parts",
        ),
        ("r.toml", "[[jobs]]\n" + ".".join("a" * 100_000) + " = 1", r"r.toml is no TOML that is read: a key has more"),
    ],
    ids=range(9),
)
def test_what_no_model_could_do_is_told_before_one_is_looked_for(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    def fail(reference: str) -> GenerateConfig:
        raise AssertionError(f"model {reference!r} was looked for")

    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said) as told:
        read_request(tmp_path / name, fail)
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 2


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        read_request(tmp_path / "gone.toml", settings_of)
    (tmp_path / "r.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no text in UTF-8"):
        read_request(tmp_path / "r.json", settings_of)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("n_pieces=0 is below 1"), "r.toml: one: n_pieces=0 is below 1"),
        (BadScore("not_midi", "no header (a.mid)"), "not_midi: r.toml: one: no header (a.mid)"),
    ],
)
def test_an_error_of_a_job_names_the_file_and_the_job(error: OrchestrionError, expected: str) -> None:
    error.put_before("r.toml: one")
    assert str(error) == expected
    assert str(pickle.loads(pickle.dumps(error))) == expected  # as between processes
