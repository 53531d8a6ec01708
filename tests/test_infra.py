"""Docker and Kubernetes do not run here, so the files of infra/ are held against rules and against the real programs.

Commands are parsed by the command lines they are for, settings looked up where Prefect and MLflow define them, flows
imported, pins compared with constraints.txt, manifests checked by a strict schema.
"""

import ast
import configparser
import copy
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from flows.cli.main import app
from flows.services import environment
from tasks.config.overrides import apply_overrides
from tasks.config.pipeline import PipelineConfig
from tasks.config.presets import build_preset
from tasks.storage.home import Home
from tests.kuberay_schema import SCHEMAS

ROOT = Path(__file__).resolve().parent.parent
INFRA = ROOT / "infra"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"orchestrion:{PROJECT['version']}"
YAML_FILES = sorted(INFRA.rglob("*.yaml"))
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))
SECRET_WORDS = re.compile(r"PASSWORD|TOKEN|SECRET|AUTH_STRING|CONNECTION_URL|BACKEND_STORE_URI|ACCESS_KEY")
# Known to the programs, though no list of theirs that can be imported holds them.
OTHER_NAMES = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL",  # overrides handlers.console.level of Prefect's logging.yml
    "PREFECT_LOGGING_ROOT_LEVEL",  # overrides root.level there
    "RAY_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in lines), path
    return {re.sub(r"[._-]+", "-", name).lower(): number for name, number in (line.split("==") for line in lines)}


def settings_lines() -> tuple[dict[str, str], dict[str, str], set[str]]:
    """Return the active settings of settings.env, those that stand there as examples, and the names called secret."""
    active, examples, secret = {}, {}, set()
    for line in (INFRA / "settings.env").read_text().splitlines():
        if match := re.fullmatch(r"(#?)([A-Z][A-Z0-9_]*)=(\S*)", line):
            (examples if match[1] else active)[match[2]] = match[3]
        elif line.startswith("# secret:"):
            secret |= set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", line))
        else:
            assert line.startswith("#"), f"neither a setting nor a comment: {line}"
    return active, examples, secret


def walk(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk(inner, f"{place}[{index}]")
    else:
        yield place, value


def parse_command(words: list[str]) -> dict[str, Any]:
    """Parse a command line with the program it is for; return its options."""
    program, name, rest = words[0], words[1], words[2:]
    if program == "orchestrion":
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        return command.make_context(name, rest).params
    if program == "mlflow":
        from mlflow.cli import cli

        return cli.commands[name].make_context(name, rest).params
    assert program == "prefect", words
    from prefect.cli._app import _app

    return dict(_app.parse_args(words[1:], exit_on_error=False, print_error=False)[1].arguments)


# ---- All files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda p: p.name)
def test_yaml_parses(path: Path) -> None:
    assert isinstance(load(path), dict)


def test_the_readme_names_every_file() -> None:
    text = (INFRA / "README.md").read_text()
    hidden = {".gitignore", "README.md"}
    files = [p for p in INFRA.rglob("*") if p.is_file() and p.name not in hidden | {".env"}]
    assert [str(p.relative_to(INFRA)) for p in files if f"`{p.relative_to(INFRA)}`" not in text] == []


def test_no_file_holds_a_secret() -> None:
    for path in [p for p in INFRA.rglob("*") if p.is_file() and p.name != ".env"]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.name}:{number}"
            for user, password in re.findall(r"://([\w.-]+):([^@/\s]+)@", line):
                assert password.startswith(("${", "...")), f"{where}: a password for {user} in an address"
            if path.suffix in {".yaml", ".env", ".example"} or path.name == "Dockerfile":
                match = re.search(r"^\s*(?:ENV |ARG |- )?([A-Z][A-Z0-9_]*)\s*[:=]\s*(\S.*)$", line)
                if match and SECRET_WORDS.search(match[1]) and match[1] != "RAY_AUTH_TOKEN_PATH":
                    assert "${" in match[2], f"{where}: {match[1]} has a value"


def test_versions_are_those_of_the_project() -> None:
    pinned = pins(ROOT / "constraints.txt")
    for path in MANIFESTS:
        versions = {value for place, value in walk(load(path)) if place.endswith(".rayVersion")}
        assert versions == {pinned["ray"]}
        assert {value for place, value in walk(load(path)) if place.endswith(".image")} == {IMAGE, f"{IMAGE}-cuda"}
    assert load(INFRA / "prefect.yaml")["prefect-version"] == pinned["prefect"]
    assert {s["image"] for s in load(INFRA / "compose.yaml")["services"].values()} == {IMAGE, "postgres:15-bookworm"}


def test_extra_pins_add_to_the_constraints_and_change_none() -> None:
    extra = pins(INFRA / "constraints-extra.txt")
    assert set(extra) & set(pins(ROOT / "constraints.txt")) == set()
    assert {"psycopg", "flask-wtf", "grpcio"} <= set(extra)


# ---- settings.env ------------------------------------------------------------------------------------------------


def test_settings_are_what_the_command_line_sets() -> None:
    active, examples, _ = settings_lines()
    on_terminals = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "MLFLOW_LOGGING_LEVEL"}  # a service wants its log lines
    assert active == {name: value for name, value in environment.DEFAULTS.items() if name not in on_terminals}
    assert {name: examples[name] for name in on_terminals} == {
        name: environment.DEFAULTS[name] for name in on_terminals
    }


def test_settings_give_no_secret() -> None:
    active, examples, secret = settings_lines()
    assert secret >= {"PREFECT_API_AUTH_STRING", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD"}
    assert secret & (set(active) | set(examples)) - {"RAY_AUTH_TOKEN_PATH"} == set()


def test_every_variable_of_ours_is_in_the_settings() -> None:
    code = "".join(p.read_text() for folder in ("flows", "tasks") for p in (ROOT / folder).rglob("*.py"))
    active, examples, _ = settings_lines()
    read = set(re.findall(r"ORCHESTRION_[A-Z_]+", code)) - {"ORCHESTRION_QUERY_"}  # a prefix of names of secrets
    assert {name for name in active | examples if name.startswith("ORCHESTRION_")} == read


def known_names() -> set[str]:
    from mlflow import environment_variables
    from mlflow.cli import cli
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names

    mlflow = {value.name for value in vars(environment_variables).values() if hasattr(value, "name")}
    options = {str(parameter.envvar) for parameter in cli.commands["server"].params if hasattr(parameter, "envvar")}
    return set(_get_valid_setting_names(Settings)) | mlflow | options | set(environment.DEFAULTS) | OTHER_NAMES


@pytest.mark.slow
def test_every_variable_is_known_to_its_program() -> None:
    active, examples, secret = settings_lines()
    compose = load(INFRA / "compose.yaml")["services"]
    servers = {name for service in ("prefect", "mlflow", "deploy") for name in compose[service]["environment"]}
    pods = {
        value for path in MANIFESTS for place, value in walk(load(path)) if re.search(r"\.env\[\d+\]\.name$", place)
    }
    dockerfile = {name for name in dockerfile_variables() if name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
    names = set(active) | set(examples) | secret | servers | pods | dockerfile
    theirs = {name for name in names if name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
    assert theirs - known_names() == set()
    ours = {name for name in names if name.startswith("ORCHESTRION_")}
    assert ours <= set(examples)


# ---- Dockerfile --------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", (INFRA / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def dockerfile_variables() -> set[str]:
    return {name for word, rest in instructions() if word in {"ENV", "ARG"} for name in re.findall(r"(\w+)=", rest)}


def test_the_image_is_slim_and_pinned() -> None:
    bases = [rest for word, rest in instructions() if word == "FROM"]
    assert bases == ["python:3.11-slim-bookworm"]
    commands = " ".join(rest for word, rest in instructions() if word == "RUN")
    assert commands.count("-c constraints.txt -c constraints-extra.txt") == 1
    assert "grep '^torch==' constraints.txt" in commands


@pytest.mark.parametrize(("index", "options"), [("", []), ("https://index.example/simple", ["--index-url", "{}"])])
def test_no_address_decides_which_torch_the_image_has(tmp_path: Path, index: str, options: list[str]) -> None:
    assert [rest for word, rest in instructions() if word == "ARG"] == ["TORCH_BUILD", "TORCH_INDEX"]  # no defaults
    texts = {path: path.read_text() for path in (INFRA / "Dockerfile", INFRA / "README.md", INFRA / "compose.yaml")}
    assert [
        path.name for path, text in texts.items() if re.search(r"https?://[^\s`]*(pypi|pytorch|whl|simple)", text)
    ] == []
    installing = next(rest for word, rest in instructions() if word == "RUN" and "torch_build.py" in rest)
    mount, _, command = installing.partition(" ")
    assert mount == "--mount=type=secret,id=pip,target=/etc/pip.conf"
    first = command.partition(" && ")[0]
    (tmp_path / "pip").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    (tmp_path / "pip").chmod(0o755)
    shown = subprocess.run(
        ["sh", "-c", first], cwd=ROOT, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCH_INDEX": index},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    torch = f"torch=={pins(ROOT / 'constraints.txt')['torch']}"
    assert shown.stdout.split() == ["install", "--no-deps", *(word.format(index) for word in options), torch]


@pytest.mark.slow
def test_the_image_says_which_torch_it_got_and_refuses_another_than_the_one_asked_for() -> None:
    import torch

    got, other = ("cuda", "cpu") if torch.version.cuda else ("cpu", "cuda")
    for asked, code in ((got, 0), (other, 1)):
        done = subprocess.run(
            [sys.executable, str(INFRA / "torch_build.py"), asked], capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert re.match(
            rf"torch {re.escape(torch.__version__)}, for .*, \d+\.\d\d GB with its libraries\n", done.stdout
        )
        assert (f"TORCH_BUILD={asked}, but pip got the {got} build" in done.stderr) == (code == 1)


def test_the_image_runs_as_nobody_special() -> None:
    words = [word for word, _ in instructions()]
    user = instructions()[words.index("USER")][1]
    assert words.count("USER") == 1
    assert "RUN" not in words[words.index("USER") :]
    assert int(user) >= 1000
    assert f"useradd --uid {user}" in dict(enumerate(rest for word, rest in instructions() if word == "RUN"))[0]
    users = {value for path in MANIFESTS for place, value in walk(load(path)) if place.endswith("runAsUser")}
    assert users == {int(user)}


def test_the_image_holds_compiled_code_that_its_user_finds() -> None:
    variables = dict(pair.split("=", 1) for word, rest in instructions() if word == "ENV" for pair in rest.split())
    folder = Path(variables["NUMBA_CACHE_DIR"])
    assert folder.is_relative_to("/opt/orchestrion")  # which, unlike /tmp, no volume hides
    assert variables["NUMBA_CPU_NAME"] == "generic"
    compiling = next(rest for word, rest in instructions() if "tasks.dataset.precompile" in rest)
    steps = [step.strip() for step in compiling.split("&&")]
    # From another folder than the sources, or the code would be kept for these and not for the installed files.
    order = [
        "pip install --no-deps .", "cd /", "python -m tasks.dataset.precompile",
        'chown --recursive orchestrion:orchestrion "$NUMBA_CACHE_DIR"',
    ]  # fmt: skip
    assert [step for step in steps if step in order] == order


def test_the_image_gets_all_it_needs_and_the_context_lets_it_in() -> None:
    sources = [name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]]
    assert [name for name in sources if not (ROOT / name).exists()] == []
    packages = [pattern.rstrip("*") for pattern in ("flows*", "tasks*", "models*")]
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert find["include"] == [f"{package}*" for package in packages]
    needed = {*packages, "pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]}
    assert needed <= set(sources)
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(sources)


def test_the_image_asks_for_extras_that_exist() -> None:
    commands = " ".join(rest for word, rest in instructions() if word == "RUN")
    assert "['optional-dependencies']['postgres']" in commands
    assert "postgres" in PROJECT["optional-dependencies"]
    from importlib.metadata import metadata

    for package, extra in re.findall(r"'(\w+)\[(\w+)\]'", commands):
        assert extra in (metadata(package).get_all("Provides-Extra") or []), f"{package}[{extra}]"


# ---- compose.yaml ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load(INFRA / "compose.yaml")


def test_only_loopback_ports_are_published(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:4200:4200", "127.0.0.1:5000:5000"]
    assert all("network_mode" not in service for service in compose["services"].values())


def test_secrets_come_from_the_environment_and_have_no_default(compose: dict[str, Any]) -> None:
    used = {}
    for place, value in walk(compose["services"]):
        for name, default in re.findall(r"\$\{(\w+)([^}]*)\}", str(value)):
            used[name] = default
            if SECRET_WORDS.search(name) or "KEY" in name:
                assert default.startswith(":?"), f"{place}: {name} has a default, or may be empty"
    lines = (INFRA / ".env.example").read_text().splitlines()
    required = {line.partition("=")[0]: line.partition("=")[2] for line in lines if re.match(r"[A-Z]", line)}
    optional = {match[1] for line in lines if (match := re.match(r"#([A-Z_]+)=", line))}
    assert set(required.values()) == {""}
    assert set(required) == {name for name, default in used.items() if default.startswith(":?")}
    assert optional == {name for name, default in used.items() if default.startswith(":-")}
    for service in compose["services"].values():
        for name, value in service["environment"].items():
            assert not SECRET_WORDS.search(name) or "${" in str(value), name
    assert ".env" in (INFRA / ".gitignore").read_text().split()


def test_services_fit_together(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"postgres", "prefect", "mlflow", "deploy"}
    for name, service in services.items():
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[other], f"{name} waits for {other}, which has no health check"
        for host, port in re.findall(r"(?:@|//)([a-z]+):(\d+)", " ".join(str(v) for _, v in walk(service))):
            assert host in services, f"{name} speaks to {host}"
            assert port == {"postgres": "5432", "prefect": "4200", "mlflow": "5000"}[host]
        for volume in service.get("volumes", []):
            origin = volume.split(":")[0] if not volume.startswith("$") else ""
            if origin.startswith("./"):
                assert (INFRA / origin).is_file(), origin
            else:
                assert not origin or origin in compose["volumes"], origin
        if name != "postgres":
            assert service["cap_drop"] == ["ALL"]
            assert (INFRA / service["env_file"]).is_file()
            assert (INFRA / service["build"]["context"]).resolve() == ROOT
        assert "no-new-privileges:true" in service["security_opt"]
    versions = int(services["postgres"]["image"].partition(":")[2].partition("-")[0])
    assert versions >= 15


def test_the_databases_are_those_that_the_script_makes(compose: dict[str, Any]) -> None:
    script = (INFRA / "postgres-init.sh").read_text()
    names = re.search(r"for name in ([\w ]+);", script)
    assert names
    urls = [value for _, value in walk(compose["services"]) if str(value).startswith("postgresql+")]
    made = [re.match(r"postgresql\+(\w+)://(\w+):\$\{(\w+)[^}]*\}@postgres:5432/(\w+)$", url) for url in urls]
    assert [(m[2], m[4]) for m in made if m] == [(name, name) for name in names[1].split()]
    assert [m[3] for m in made if m] == [f"{name.upper()}_DB_PASSWORD" for name in names[1].split()]
    assert {m[3] for m in made if m} <= set(compose["services"]["postgres"]["environment"])
    drivers = pins(ROOT / "constraints.txt") | pins(INFRA / "constraints-extra.txt")
    assert {m[1] for m in made if m} <= set(drivers)


@pytest.mark.parametrize("service", ["prefect", "mlflow", "deploy"])
def test_service_commands_parse(compose: dict[str, Any], service: str) -> None:
    words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in compose["services"][service]["command"]]
    parsed = parse_command(words)
    if service == "deploy":
        from flows.deployments import check_cron

        check_cron(parsed["cron"])
        build_preset(parsed["preset"])
    else:
        assert (parsed["host"], int(parsed["port"])) == ("0.0.0.0", {"prefect": 4200, "mlflow": 5000}[service])


def test_health_checks_are_python_that_compiles(compose: dict[str, Any]) -> None:
    for name in ("prefect", "mlflow"):
        test = compose["services"][name]["healthcheck"]["test"]
        assert test[:3] == ["CMD", "python", "-c"]
        ast.parse(test[3])
        assert f"127.0.0.1:{4200 if name == 'prefect' else 5000}" in test[3]


def test_mlflow_auth_has_the_keys_that_mlflow_reads_and_no_password() -> None:
    import mlflow

    ours, theirs = configparser.ConfigParser(), configparser.ConfigParser()
    ours.read(INFRA / "mlflow-auth.ini")
    theirs.read(Path(mlflow.__file__).parent / "server" / "auth" / "basic_auth.ini")
    assert ours.sections() == theirs.sections() == ["mlflow"]
    assert set(ours["mlflow"]) == set(theirs["mlflow"]) - {"grant_default_workspace_access"}
    assert ours["mlflow"]["database_uri"].startswith("sqlite:////data/mlflow/")  # a volume: users outlive the container
    assert ours["mlflow"]["default_permission"] == "READ"


# ---- prefect.yaml ------------------------------------------------------------------------------------------------


def filled(value: Any) -> Any:
    """Return prefect.yaml's values with its {{ $VARIABLES }} put in."""
    if isinstance(value, dict):
        return {key: filled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner) for inner in value]
    return re.sub(r"\{\{ \$ORCHESTRION_(\w+) \}\}", lambda m: m[1].lower(), value) if isinstance(value, str) else value


@pytest.mark.slow
def test_prefect_takes_the_file_and_every_key_of_it() -> None:
    from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel, RawScheduleConfig, WorkPoolConfig

    given = load(INFRA / "prefect.yaml")
    model = PrefectYamlModel.model_validate(given)
    fields = set(PrefectYamlModel.model_fields) | {"prefect-version"}
    assert set(given) <= fields  # Prefect itself would ignore a misspelt key
    for entry in given["deployments"]:
        assert set(entry) <= set(DeploymentConfig.model_fields), entry["name"]
        assert set(entry["work_pool"]) <= set(WorkPoolConfig.model_fields)
    schedules = [schedule for entry in model.deployments for schedule in entry.schedules or []]
    assert all(isinstance(schedule, RawScheduleConfig) for schedule in schedules)


def test_no_deployment_of_a_work_pool_carries_a_pull_step() -> None:
    """One is a command that every worker runs; an empty list says none, where a missing one means Prefect's default."""
    given = load(INFRA / "prefect.yaml")
    assert given["pull"] == []
    assert not any("pull" in entry or "job_variables" in entry["work_pool"] for entry in given["deployments"])


@pytest.mark.slow
def test_the_deployments_are_those_of_the_code() -> None:
    from prefect.flows import load_flow_from_entrypoint

    from flows.deployments import build_deployments

    cron = next(p.default for p in typer.main.get_command(app).commands["deploy"].params if p.name == "cron")  # type: ignore[attr-defined]
    wanted = {d.name: d for d in build_deployments(Home.at("home"), PipelineConfig(), cron)}
    given = {entry["name"]: entry for entry in load(INFRA / "prefect.yaml")["deployments"]}
    assert set(given) == set(wanted)
    for name, entry in given.items():
        assert entry["entrypoint"] == wanted[name].entrypoint
        assert entry["tags"] == wanted[name].tags
        flow = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
        assert flow.name == wanted[name].flow_name
        flow.validate_parameters(filled(entry["parameters"]))
        assert [s["cron"] for s in entry.get("schedules", [])] == [s.schedule.cron for s in wanted[name].schedules]
        # one with a slug makes the server refuse the same deployment from `orchestrion deploy`, which gives none
        assert all("slug" not in schedule for schedule in entry.get("schedules", []))


# ---- kuberay -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_manifests_fit_the_schema(path: Path) -> None:
    manifest = load(path)
    jsonschema.Draft202012Validator(SCHEMAS[manifest["kind"]]).validate(manifest)


def test_the_schema_catches_mistakes() -> None:
    manifest = load(INFRA / "kuberay" / "rayjob.yaml")
    validator = jsonschema.Draft202012Validator(SCHEMAS["RayJob"])
    head = ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec"]
    mistakes: list[tuple[list[Any], Any]] = [
        (["spec", "shutdownAfterJobFinish"], True),
        (["spec", "rayClusterSpec", "authOptions", "mode"], "disabled"),
        (["spec", "rayClusterSpec", "headGroupSpec", "serviceType"], "LoadBalancer"),
        ([*head, "hostNetwork"], True),
        ([*head, "containers", 0, "image"], "orchestrion:latest"),
        ([*head, "containers", 0, "securityContext", "privileged"], True),
        ([*head, "containers", 0, "env", 0, "value"], 8),
    ]
    for place, value in mistakes:
        wrong = copy.deepcopy(manifest)
        inner = wrong
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        assert not validator.is_valid(wrong), place
    assert validator.is_valid(manifest)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_manifests_ask_for_resources_and_hold_no_secret(path: Path) -> None:
    spec = load(path)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for container in [c for group in groups for c in group["template"]["spec"]["containers"]]:
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        assert {"configMapRef": {"name": "orchestrion-settings"}} in container["envFrom"]
        assert [entry["name"] for entry in container.get("env", []) if SECRET_WORDS.search(entry["name"])] == []
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] for g in cluster["workerGroupSpecs"])
    # workers see no passwords: only the driver speaks to Prefect and MLflow
    workers = [c for g in cluster["workerGroupSpecs"] for c in g["template"]["spec"]["containers"]]
    assert not any("secretRef" in source for worker in workers for source in worker["envFrom"])


def test_the_two_manifests_describe_the_same_workers() -> None:
    cluster, job = (load(INFRA / "kuberay" / f"{name}.yaml")["spec"] for name in ("raycluster", "rayjob"))
    assert job["rayClusterSpec"]["workerGroupSpecs"] == cluster["workerGroupSpecs"]
    assert job["rayClusterSpec"]["authOptions"] == cluster["authOptions"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_gpus_are_of_workers_alone(path: Path) -> None:
    spec = load(path)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    groups = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    for pod in (cluster["headGroupSpec"]["template"]["spec"], groups["cpu"]):
        assert "nvidia.com/gpu" not in str(pod)
        assert pod["containers"][0]["image"] == IMAGE
    resources = groups["gpu"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"  # KubeRay takes `num-gpus` from it
    assert groups["gpu"]["containers"][0]["image"] == f"{IMAGE}-cuda"
    assert groups["gpu"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_the_job_fits_its_cluster() -> None:
    job = load(INFRA / "kuberay" / "rayjob.yaml")["spec"]
    parsed = parse_command(shlex.split(job["entrypoint"]))
    train = apply_overrides(build_preset(parsed["preset"]), parsed["overrides"]).train
    cluster = job["rayClusterSpec"]
    cores = [
        (group["replicas"], int(group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]))
        for group in cluster["workerGroupSpecs"]
    ]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    said = {entry["name"]: entry["value"] for entry in head["env"]}
    assert int(said["ORCHESTRION_CPUS"]) == sum(n * each for n, each in cores)
    assert train.n_workers * train.cpus_per_worker <= int(said["ORCHESTRION_CPUS"])
    assert train.cpus_per_worker <= min(each for _, each in cores)
    assert train.device == "auto"  # with replicas in the group `gpu` its workers go there
    mount = head["volumeMounts"][0]["mountPath"]
    assert parsed["home"].startswith(f"{mount}/")
    assert all(source.startswith(f"{mount}/") for source in parsed["source"])
