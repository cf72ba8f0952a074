"""A short version of scripts/learn_preferences.py: two epochs of DPO already change which answers are preferred."""

from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def test_two_epochs_of_dpo_are_seen_on_new_pairs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr("sys.argv", ["learn_preferences.py", "dpo", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"])
    from learn_preferences import main

    main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| dpo")]
    before, after = (float(cell) for cell in line.split("|")[4:6])
    assert before < 0.6
    assert after > 0.8
