"""The command of a flow run that a deployment triggers: Prefect's engine, with this project's log lines switched on.

    python -m flows.services.deployed

`flows/services/runner.py` starts it. Without it a run's log in Prefect has warnings only.
"""

import os
import runpy

from flows.services import environment
from tasks.storage.home import Home

if __name__ == "__main__":
    environment.set_defaults()
    environment.configure_logging(0)
    if os.environ.get("ORCHESTRION_HOME"):
        environment.import_prefect(Home.at())
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
