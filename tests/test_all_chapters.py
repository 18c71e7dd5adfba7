"Every chapter and every page of solutions runs in the smoke profile, small and soon; the book's test reads what they leave."
import pytest

from semseg_course.profiles import chapter_names, project_root, run_chapter

MEMORY = 3 * 1024  # MiB
SECONDS = 60 * 3.5  # a minute on two quiet cores; a shared machine may take 3.5 times as long


@pytest.mark.slow
@pytest.mark.xdist_group("chapters")
@pytest.mark.parametrize("name", chapter_names(project_root(__file__)))
def test_chapter_runs(name):
    record = run_chapter(name, "smoke", project_root(__file__))
    assert record["ok"], f"{record['cell']}\n\n{record['error']}"
    assert record["seconds"] < SECONDS
    assert record["peak_memory_mib"] is None or record["peak_memory_mib"] < MEMORY
