"""What `srun` and `mpirun` set: who a process is, whether it is one of several, and where they meet."""

from typing import Any

import pytest

from paralab.errors import WorldError
from paralab.options import heading
from paralab.processes.meeting import check_meeting_point, hosts, meeting_point
from paralab.processes.rank import _LAUNCHERS, Rank

# of a batch script that requested four tasks: the rank variables are set, and nothing was started yet
BATCH = {
    "SLURM_JOB_ID": "4711",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NODELIST": "node[08-11]",
}
STEP = BATCH | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[09-10]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.99",  # of the machine where srun was typed, which may have no task
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "853213185",
    "PMIX_RANK": "1",
}
FLUX = {"FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_NNODES": "2"}
PALS = {"PALS_RANKID": "3", "PMI_SIZE": "4", "PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "2"}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x', and a number from 0 is needed"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5 and WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 and WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK='-1'"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "many"}, "SLURM_NTASKS='many'"),
        ({"RANK": "9" * 5000, "WORLD_SIZE": "2"}, "a number from 0 is needed"),
        ({"RANK": "1"}, "RANK=1 and nothing of WORLD_SIZE: .*env -u RANK"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 and nothing of RANK: .*env -u WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two', and a number"),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "1"}, "LOCAL_RANK=1 and nothing of RANK"),
        ({"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE=4 and nothing of RANK"),
        ({"PMI_SIZE": "2"}, "PMI_SIZE=2 and nothing of PMI_RANK"),
        (BATCH | {"WORLD_SIZE": "4"}, "WORLD_SIZE=4 and nothing of RANK"),
        # left over: each task would be a run of its own, or rank 0
        (OPEN_MPI | {"RANK": "0", "WORLD_SIZE": "1"}, "RANK=0 and WORLD_SIZE=1, and OMPI_.*=1 of .*env -u RANK -u W"),
        (OPEN_MPI | {"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0 and WORLD_SIZE=2, and OMPI_COMM_WORLD_RANK=1"),
        (OPEN_MPI | {"RANK": "0"}, "says RANK=0, and OMPI_COMM_WORLD_RANK=1"),
        (OPEN_MPI | {"WORLD_SIZE": "4"}, "says WORLD_SIZE=4, and .* of OMPI_COMM_WORLD_SIZE=2: .*env -u WORLD_SIZE"),
        (STEP | {"RANK": "1", "WORLD_SIZE": "4"}, "RANK=1 and WORLD_SIZE=4, and SLURM_PROCID=0"),
        ({"SLURM_PROCID": "1"}, "SLURM_PROCID=1 and nothing of SLURM_STEP_NUM_TASKS"),
        (STEP | {"SLURM_PROCID": "4", "SLURM_HET_SIZE": "2"}, "components of a heterogeneous job.*--het-group=0"),
        (PALS | {"PMI_SIZE": ""}, "PALS_RANKID=3 and nothing of PMI_SIZE"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": ""}, "nothing of OMPI_COMM_WORLD_SIZE"),
        ({"PMIX_RANK": "0", "PMIX_NAMESPACE": "prterun-a-7@1"}, "PMIX_RANK=0 and not of how many: .*env -u PMIX_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE=4 and WORLD_SIZE=1"),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=3, LOCAL_WORLD"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x"}, "SLURM_STEP_TASKS_PER_NODE='2.x', and numbers of tasks"),
        (STEP | {"SLURM_NODEID": "first"}, "SLURM_NODEID='first'"),
    ],
)
def test_variables_that_make_no_rank_are_one_line(env: dict[str, str], said: str) -> None:
    with pytest.raises(WorldError, match=said):
        Rank.from_env(env)


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Rank.from_env({"RANK": "", "WORLD_SIZE": "", "SLURM_PROCID": ""}) == Rank(0, 1, 0, 1, "python")
    monkeypatch.setenv("RANK", "")
    assert heading.is_first_process()


def test_a_command_prints_for_the_first_rank_of_every_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {names[0] for _, _, names in _LAUNCHERS} == set(heading.RANKS)
    for name in heading.RANKS:
        monkeypatch.setenv(name, "1")
        assert not heading.is_first_process(), name
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"MASTER_PORT": "29500"}, "without MASTER_ADDR: type export"),
        ({}, "without MASTER_ADDR and MASTER_PORT"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "abc"}, "MASTER_PORT='abc'"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
    ],
)
def test_ranks_that_are_not_told_where_to_meet_say_what_to_type(env: dict[str, str], said: str) -> None:
    with pytest.raises(WorldError, match=said):
        check_meeting_point(env)


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("localhost", "localhost"),
        ("gpu[01-03,7],login", "gpu01 gpu02 gpu03 gpu7 login"),
        ("a[9-11]", "a9 a10 a11"),
        ("rack[1-2]n[01-02],x", "rack1n01 rack1n02 rack2n01 rack2n02 x"),
        ("n-1,n-[2-3].lan", "n-1 n-2.lan n-3.lan"),
    ],
)
def test_a_list_of_nodes_is_written_out(nodelist: str, names: str) -> None:
    assert " ".join(hosts(nodelist)) == names


@pytest.mark.parametrize(
    "env",
    [
        {},
        BATCH,
        BATCH | {"SLURM_NTASKS": "1"},
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        STEP | {"SLURM_STEP_ID": "batch"},
        STEP | {"SLURM_STEP_ID": "4294967290"},  # SLURM_INTERACTIVE_STEP
        STEP | {"SLURM_STEP_ID": "extern"},
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"},  # srun --mpi=pmix
        BATCH | {"MASTER_ADDR": "node08", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"FLUX_JOB_SIZE": "4"},  # flux alloc
    ],
)
def test_a_script_or_a_shell_of_slurm_starts_its_own_processes(env: dict[str, str]) -> None:
    assert Rank.from_env(env) == Rank(0, 1, 0, 1, "python")


@pytest.mark.parametrize(
    ("env", "found"),
    [
        (STEP | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}, ("slurm", 3, 4, 1, 2)),
        # the batch script has more tasks than this step of it
        (STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, ("slurm", 0, 2, 0, 1)),
        # as many tasks a node as the job has asked for, and fewer in this step
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "8"}, ("slurm", 0, 4, 0, 4)),
        (OPEN_MPI, ("mpi", 1, 2, 1, 2)),
        (BATCH | OPEN_MPI, ("mpi", 1, 2, 1, 2)),  # mpirun in a batch script
        (MPICH, ("mpi", 3, 4, 1, 2)),
        ({name.replace("OMPI_", "MV2_"): value for name, value in OPEN_MPI.items()}, ("mpi", 1, 2, 1, 2)),
        # MPICH starts one of its own on each node by srun
        (STEP | {"SLURM_STEP_NUM_TASKS": "2"} | MPICH, ("mpi", 3, 4, 1, 2)),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, ("mpi", 0, 2, 0, 2)),
        (STEP | {"PMI_RANK": "0", "PMI_SIZE": "4"}, ("slurm", 0, 4, 0, 2)),  # srun --mpi=pmi2
        (FLUX, ("mpi", 3, 4, 1, 4)),
        (FLUX | {"PMI_RANK": "3", "PMI_SIZE": "4"}, ("mpi", 3, 4, 1, 4)),
        (PALS, ("mpi", 3, 4, 1, 2)),
        # what scripts set from Slurm's own, of which the local rank is known as well
        (STEP | {"RANK": "0", "WORLD_SIZE": "4"}, ("slurm", 0, 4, 0, 2)),
        (OPEN_MPI | {"RANK": "1", "WORLD_SIZE": "2"}, ("mpi", 1, 2, 1, 2)),
        (OPEN_MPI | {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, ("mpi", 1, 2, 1, 2)),
        (STEP | {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, ("torchrun", 0, 4, 0, 4)),
        # a task may start several ranks, by itself or by torchrun
        (STEP | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, ("torchrun", 5, 8, 1, 8)),
        (STEP | {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}, ("torchrun", 0, 1, 0, 1)),
        (BATCH | {"RANK": "0", "WORLD_SIZE": "1"}, ("torchrun", 0, 1, 0, 1)),  # and a script may start one
        (PALS | {"PMI_RANK": "3", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"}, ("mpi", 3, 4, 1, 2)),
        ({"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"}, ("mpi", 3, 4, 1, 2)),
        (
            {
                name.replace("OMPI_COMM_WORLD", "JSM_NAMESPACE"): value
                for name, value in OPEN_MPI.items()
                if "OMPI" in name
            },
            ("mpi", 1, 2, 1, 2),
        ),
    ],
)
def test_who_a_process_is(env: dict[str, str], found: tuple[Any, ...]) -> None:
    rank = Rank.from_env(env)
    assert (rank.launcher, rank.rank, rank.world_size, rank.local_rank, rank.local_world_size) == found


def test_a_launcher_says_whether_it_starts_a_command_again() -> None:
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    for env, again in (({}, False), ({"TORCHELASTIC_MAX_RESTARTS": "0"}, False), ({"PARALAB_LAUNCH": "a"}, True)):
        assert Rank.from_env(torchrun | env).starts_again is again
    second = Rank.from_env(torchrun | {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert second.starts_again and second.attempt == 0  # of several launchers each counts for itself
    alone = {"TORCHELASTIC_RESTART_COUNT": "2", "GROUP_WORLD_SIZE": "1"}
    assert Rank.from_env(torchrun | alone).attempt == 2


def met(env: dict[str, str], *, here: bool = False) -> dict[str, str]:
    return meeting_point(env, launcher=Rank.from_env(env).launcher, on_one_machine=here)


def test_tasks_of_slurm_meet_on_the_first_node_of_their_step() -> None:
    assert met(STEP)["MASTER_ADDR"] == "node09"
    assert met(STEP, here=True)["MASTER_ADDR"] == "127.0.0.1"


def test_a_port_is_of_the_job_and_of_its_step() -> None:
    ports = [
        int(met(STEP | change)["MASTER_PORT"]) for change in ({}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "4712"})
    ]
    assert len(set(ports)) == 3 and all(1024 < port < 32768 for port in ports)
    assert met(STEP | {"SLURM_PROCID": "2", "SLURM_NODEID": "1"}) == met(STEP)


def test_what_is_set_already_stays() -> None:
    said = {"MASTER_ADDR": "gateway", "MASTER_PORT": "1234"}
    assert met(STEP | said) == {}


def test_mpi_on_several_machines_has_to_be_told_where() -> None:
    with pytest.raises(WorldError, match="mpi does not say on which machine rank 0 is: type export MASTER_ADDR=NAME"):
        met(OPEN_MPI)
    assert met(BATCH | OPEN_MPI)["MASTER_ADDR"] == "node08"  # mpirun in a batch script


@pytest.mark.parametrize(
    "nodelist", ["[3-1]", "node[-3]", "node[a-b]", ",", "node[01-", "node01]", "node[[1-2]]", "a b"]
)
def test_a_list_of_no_nodes_says_what_to_type(nodelist: str) -> None:
    with pytest.raises(WorldError, match=r"is no list of nodes .*export MASTER_ADDR="):
        meeting_point(STEP | {"SLURM_STEP_NODELIST": nodelist}, launcher="slurm", on_one_machine=False)
