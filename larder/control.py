"""Puts the control plane's process together: controller, gate, slow work beside it, and its own API."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from deployment.control_metrics import ControlMetrics
from deployment.promotion import ControlPlane
from deployment.rollout.beside import BesideWork
from deployment.rollout.controller import WHO, Controller
from deployment.rollout.gate_feed import GateFeed
from deployment.rollout.intake import Intake
from deployment.rollout.profile_file import load_profile
from feature_repo.errors import UnavailableError
from feature_repo.settings import Settings
from training.run_metrics import LastTrainings


class ControlProcess:
    """Everything `larder controller run` runs; a context manager.

    Parameters
    ----------
    settings
        The project.
    profile
        Name of the profile of rollouts it starts; it must exist.
    with_gate
        Whether it judges versions.
    """

    def __init__(self, settings: Settings, profile: str, *, with_gate: bool = True) -> None:
        load_profile(settings, profile)
        self.profile = profile
        self._settings = settings
        self._plane = ControlPlane(settings)
        self.metrics = ControlMetrics()
        self.metrics.registry.register(LastTrainings(settings))
        told = (self.metrics.judged, self.metrics.attempted)
        self._gate = GateFeed(settings, self._plane, self._active, *told) if with_gate else None
        stale = self._gate.again if self._gate else (lambda _version: None)
        intake = Intake(self._plane, lambda: load_profile(settings, profile), WHO, stale)
        self._beside = BesideWork(settings, self._plane, self._active)
        self.controller = Controller(
            settings, store=self._plane.store, beside=self._beside, intake=intake if settings.rollout_auto else None
        )

    def __enter__(self) -> Self:
        self._beside.start()
        if self._gate is not None:
            self._gate.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._gate is not None:
            self._gate.stop()
        self._beside.stop()

    def run(self, stop: threading.Event) -> None:
        """Control until told to stop."""
        self.controller.run(stop, on_tick=self._ticked)

    @contextlib.contextmanager
    def serving(self, grace_s: int) -> Iterator[None]:
        """Do everything with the API beside it.

        Raises
        ------
        UnavailableError
            If the port is taken.
        """
        import uvicorn

        from deployment.admin_app import create_admin_app

        app = create_admin_app(self._settings, self._plane)
        config = uvicorn.Config(
            app, host="127.0.0.1", port=self._settings.admin_port, log_level="warning", access_log=False, ws="none",
            server_header=False, timeout_graceful_shutdown=grace_s,
        )  # fmt: skip
        server = uvicorn.Server(config)
        try:
            sockets = [config.bind_socket()]
        except SystemExit:
            raise UnavailableError(
                f"port {self._settings.admin_port} is taken; choose another by setting admin_port, or --no-api"
            ) from None
        thread = threading.Thread(target=server.run, args=(sockets,), name="admin-api", daemon=True)
        thread.start()
        try:
            with self:
                yield
        finally:
            server.should_exit = True
            thread.join(grace_s + 5.0)

    def _ticked(self, _said: str) -> None:
        self.metrics.ticked(self.controller.status, active=self._active(), problem=self.controller.problem)

    def _active(self) -> bool:
        return self.controller.leadership.lease is not None
