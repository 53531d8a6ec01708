"""The process behind `orchestrion deploy`: runs this project's flows when Prefect schedules them."""

import logging
import sys
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.runner import Runner
from prefect.runner._starter_engine import EngineCommandStarter
from prefect.runner._state_proposer import StateProposer
from prefect.utilities.processutils import command_to_string

from tasks.errors import ConfigError
from tasks.storage.home import Home

logger = logging.getLogger(__name__)


class FlowRunner(Runner):
    """A runner that runs the flow it was given for a deployment, even if the deployment changes.

    Any client of the server may change a deployment, and a pull step is a shell command of its choice. So a run begins
    with a look at its deployment, and the process of the run gets its entry point here, not from the server.
    Prefect's runner has no public place for such a check; the private names below are those of 3.8.8, which is pinned.
    """

    def __init__(self, home: Home, **options: Any) -> None:
        super().__init__(**options)
        self._home = home
        self._entrypoints: dict[UUID, str] = {}

    def register(self, deployment: RunnerDeployment) -> None:
        """Register a deployment with the server, without values that a work pool or another user has added."""
        deployment.work_pool_name, deployment.work_queue_name, deployment.job_variables = None, None, {}
        identity, entrypoint = self.add_deployment(deployment), deployment.entrypoint
        assert isinstance(identity, UUID)
        assert entrypoint
        with get_client(sync_client=True) as client:
            client.update_deployment(
                identity,
                DeploymentUpdate(pull_steps=None, storage_document_id=None, infrastructure_document_id=None),
            )
        self._entrypoints[identity] = entrypoint
        # For the hooks of a run that crashed or was cancelled, which are looked up in this very process.
        flow = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        self._deployment_registry.register_flow(identity, flow)

    async def __aenter__(self) -> "FlowRunner":
        await super().__aenter__()
        self._scheduled_run_poller._resolve_starter = self._starter
        self._scheduled_run_poller._state_proposer = CheckingProposer(self._client, self._entrypoints)
        return self

    def _starter(self, flow_run: FlowRun) -> EngineCommandStarter:
        identity = flow_run.deployment_id
        if identity is None or identity not in self._entrypoints:
            raise ConfigError(f"flow run {flow_run.id} belongs to no deployment of this process")
        return EngineCommandStarter(
            tmp_dir=self._tmp_dir,
            entrypoint=self._entrypoints[identity],
            command=command_to_string([sys.executable, "-m", "flows.services.deployed"]),
            env={"ORCHESTRION_HOME": str(self._home.root)},
            deployment_name=self._deployment_registry.get_deployment_name(identity),
            control_channel=self._control_channel,
        )


class CheckingProposer(StateProposer):
    """Proposes the states of runs to the server, and ends a run whose deployment is not the one that was registered."""

    def __init__(self, client: PrefectClient, entrypoints: Mapping[UUID, str]) -> None:
        super().__init__(client=client)
        self._entrypoints = entrypoints

    async def propose_submitting(self, flow_run: FlowRun) -> bool:
        """Return whether the process of a run may be started; the last step before it is."""
        why = await self._refusal(flow_run)
        if not why:
            return await super().propose_submitting(flow_run)
        logger.warning("flow run %s is not run: %s", flow_run.name, why)
        await self.propose_crashed(flow_run, f"not run: {why}")
        return False

    async def _refusal(self, flow_run: FlowRun) -> str:
        identity = flow_run.deployment_id
        if identity is None or identity not in self._entrypoints:
            return "it belongs to no deployment of this process"
        deployment, entrypoint = await self._client.read_deployment(identity), self._entrypoints[identity]
        carried = ("pull_steps", "storage_document_id", "infrastructure_document_id", "job_variables")
        strange = [name for name in carried if getattr(deployment, name)]
        if deployment.entrypoint != entrypoint:
            strange.append(f"entry point {deployment.entrypoint} for {entrypoint}")
        if flow_run.job_variables:
            strange.append("job_variables of the run")
        if not strange:
            return ""
        carries = " ".join(", ".join(strange).split())[:300]
        return f"deployment {deployment.name} was changed ({carries}); `orchestrion deploy` anew registers it again"
