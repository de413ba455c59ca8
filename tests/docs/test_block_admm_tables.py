"""The tables in docs/results/block_admm.md are those that the recorded runs give."""

from benchmarks.block_admm.tables import PAGE, written


def test_the_page_is_up_to_date():
    page = PAGE.read_text()
    assert page == written(page), "run: python -m benchmarks.block_admm.tables"
    assert page.count("<!-- begin") == 4
