"""The table at the end of a run."""

from pathlib import Path

from launch.table import print_table
from rlsys.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]


def test_every_stage_has_a_row_with_its_accuracies_and_seconds(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    results = {
        "world": {"seconds": 1.6, "evaluation_seconds": 0.2, "evaluation": {}},
        "sft": {
            "seconds": 126.4,
            "evaluation_seconds": 5.5,
            "evaluation": {"eval/test/accuracy@T1": 0.416, "eval/test/accuracy@T0": 0.4166},
        },
        "rlvr": {"seconds": 159.0, "evaluation_seconds": 6.0, "evaluation": {"eval/test/accuracy@T1": 1.0}},
    }
    print_table(
        load_recipe("configs/quickstart.toml"), results, start_up_s=8.6, total_s=353.7, folder=Path("runs/quickstart")
    )
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines[2:-2]]
    assert lines[0].strip() == "quickstart: held-out accuracy in % and seconds (evaluation apart)"
    assert [row for row in cells if len(row) > 1] == [
        ["stage", "test accuracy@T1", "test accuracy@T0", "stage s", "evaluation s"],
        ["world", "", "", "2", "0"],
        ["sft", "41.6", "41.7", "126", "6"],
        ["rlvr", "100.0", "", "159", "6"],
    ]
    assert lines[-1] == "start-up 9 s, in all 354 s; everything is in runs/quickstart, begin with report.html"
