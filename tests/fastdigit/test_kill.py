"""kill -9 at random moments, the short form of ``python -m fastdigit.bench.kill_and_resume``."""

from fastdigit.bench import kill_and_resume


def test_killed_five_times_the_training_still_ends_with_the_same_bits():
    result = kill_and_resume.run(kills=5, seed=1)
    assert result["bit_identical"]
    assert result["leftover_files"] == []
    assert result["checkpoints_loaded"] + result["killed_before_the_first_checkpoint"] == 5
