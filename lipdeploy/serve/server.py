"""``lipdeploy serve``: the ports, and one process behind them or several."""

from __future__ import annotations

from lipdeploy.serve.binding import Binding, check_tls, settle
from lipdeploy.serve.ports import bind
from lipdeploy.serve.process import run_process
from lipdeploy.serve.service import Service
from lipdeploy.serve.settings import Settings
from lipdeploy.serve.workers import supervise


def run(settings: Settings, binding: Binding) -> int:
    """Serve until a signal; the exit code. 0 after a drain; with ``fail_fast`` the code of the worst failure.

    Where a proof is still running at the end, the process ends here: see ``run_process``.
    """
    settings = settle(settings, binding)
    check_tls(binding)
    ports = [bind(binding.host, binding.port)]
    if binding.admin_port is not None:
        ports.append(bind(binding.host, binding.admin_port))
    if binding.workers > 1:
        return supervise(settings, binding, ports)
    return run_process(Service(settings), binding, ports)
