"""MLflow's server as an application, and the check whether a foreign one accepts a password."""

import os
from typing import Any

from tasks.errors import ConfigError


def server_application(database: str, artifacts: str) -> Any:
    """Return MLflow's server as an ASGI application for a process of its own; it has no password.

    Args:
        database, artifacts: addresses of the tracking store and of the folder of the runs' files.
    """
    from mlflow import environment_variables as variables
    from mlflow.server import constants, handlers

    os.environ |= {
        variables._MLFLOW_SGI_NAME.name: "uvicorn",
        variables._MLFLOW_IN_JOB_EXECUTOR.name: "false",
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
    }
    handlers.initialize_backend_stores(database, database, "mlflow-artifacts:/")
    from mlflow.server.fastapi_app import app  # reads those variables

    return app


def check_password(uri: str) -> None:
    """Raise ConfigError where a server refuses the password of the environment.

    Without this check each call fails with its own message, some after retries. A server that does not answer passes.
    """
    import requests

    name, password = (os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return
    try:
        answer = requests.post(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
            json={"max_results": 1},
            auth=(name, password) if name else None,
            timeout=10,
        )
    except (requests.RequestException, ValueError):
        return
    if answer.status_code in (401, 403):
        raise ConfigError(
            "the MLflow server at MLFLOW_TRACKING_URI refuses the user or password of MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD"
        )
