"""What a kill may leave of checkpoints is cleaned, and never taken for one."""

from mopd_jax.run import checkpoint


def test_pruning(tmp_path):
    for name in ("2", "4", "6", "3.removed", "8.orbax-checkpoint-tmp-1", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text("x")
    assert checkpoint.steps(tmp_path) == [2, 4, 6]
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "6", "notes"]
    checkpoint.prune(tmp_path, keep=2)
    assert checkpoint.steps(tmp_path) == [4, 6]
    assert checkpoint.steps(tmp_path / "none") == []
