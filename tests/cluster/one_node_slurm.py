"""A Slurm cluster of one node with two slots, on the loopback of this machine, as long as a test needs it.

It needs the programs of Debian's packages slurm-wlm and munge, and root; no systemd, no cgroups and no
database.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol")
_CONFIGURATION = """\
ClusterName=sdsl
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=2
ReturnToService=2
JobRequeue=1
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _find(name: str) -> str | None:
    """Where a program is; daemons may lie outside the path."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def why_not() -> str:
    """Why there can be no Slurm here; empty if there can. Installs it where CI=true."""
    if os.geteuid():
        return "a Slurm of one node needs root"
    missing = [name for name in _PROGRAMS if _find(name) is None]
    if missing and os.environ.get("CI") == "true":
        told = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "timeout": 600}
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["apt-get", "update", "-qq"], **told)
            subprocess.run(["apt-get", "install", "-y", "-qq", *PACKAGES], **told)
        missing = [name for name in _PROGRAMS if _find(name) is None]
    return f"{', '.join(missing)} is not installed" if missing else ""


class DidNotStart(Exception):
    """A daemon of the cluster does not run on this machine."""


@contextlib.contextmanager
def slurm(folder: Path):
    """Runs the cluster, to which the environment then points, until the block ends.

    Raises:
      DidNotStart: It cannot be brought up here.
    """
    folder.chmod(0o755)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(_CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(2)))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    munge = folder / "munge"
    daemons = []
    try:
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        socket_ = f"--socket={munge / 'socket'}"
        daemons.append(_start("munged", "--foreground", "--force", socket_, *files))
        _until(lambda: (munge / "socket").exists(), 10, "munged makes no socket")
        daemons.append(_start("slurmctld", "-D", "-i"))
        daemons.append(_start("slurmd", "-D", "-N", host))
        _until(lambda: "idle" in _sinfo(), 60, "its node did not become idle")
        yield conf
    finally:
        if len(daemons) > 1:
            subprocess.run(["scancel", "--user=root", "--quiet"], check=False, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def _start(*command: str) -> subprocess.Popen:
    program = [_find(command[0]) or command[0], *command[1:]]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _sinfo() -> str:
    told = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, check=False)
    return told.stdout


def _until(true, seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise DidNotStart(otherwise)
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
