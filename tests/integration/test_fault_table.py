"""docs/faults.md has the very matrix that `make faults` runs. This is checked in every run of the tests."""

from fault_lab import ROOT
from test_fault_matrix import CELLS, DRIVER_MOMENTS

ROWS = [
    *((cell.fault, cell.component, cell.moment, cell.outcome) for cell in CELLS),
    *((fault, "engine core (tensor parallel)", "sampling", "rollout replaced") for fault in ("SIGKILL", "SIGSTOP")),
    ("SIGKILL", "reward model", "scoring", "reward replaced"),  # test_reward_model.py
    ("disk full", "checkpoint", "checkpoint", "stopped with an error; the checkpoint before is whole"),
    ("flipped bit", "checkpoint", "rollback", "passed over by name, the one before is used"),
    *(("SIGKILL", "driver", moment, "resumes to the same bits") for moment in DRIVER_MOMENTS),
    *(
        ("SIGKILL", "raylet (object store)", moment, "stopped with an error; resumes to the same bits")
        for moment in ("sampling", "update")
    ),
    ("network cut", "rollout worker's node", "sampling", "goes on with the node that is left"),  # test_fault_network.py
    (
        "SIGKILL",
        "node with finished groups",
        "update",
        "back to the last checkpoint, goes on with the node that is left",
    ),  # test_fault_node.py
    ("SIGKILL", "everything", "20 random moments", "resumes to the same bits"),
]


def table() -> str:
    """The matrix as it stands in docs/faults.md."""
    merged: dict[tuple[str, str, str], list[str]] = {}
    for fault, component, moment, outcome in ROWS:
        merged.setdefault((fault, component, outcome), []).append(moment)
    lines = ["| fault | component | at | outcome |", "|---|---|---|---|"]
    lines += [f"| {f} | {c} | {', '.join(moments)} | {o} |" for (f, c, o), moments in merged.items()]
    return "\n".join(lines)


def test_the_table_in_the_docs_is_this_one():
    assert table() in (ROOT / "docs" / "faults.md").read_text()


def test_the_matrix_has_sixty_cells_none_twice():
    assert len(set(ROWS)) == len(ROWS) == 60
