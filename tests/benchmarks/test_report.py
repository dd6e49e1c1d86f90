import re

import pytest

from benchmarks.report import write
from benchmarks.table import Measured, keep


def test_the_page_shows_every_kept_benchmark_with_its_ratios(tmp_path):
    contestants = [
        Measured(name="ours <fast>", wall=[1.0, 2.0, 3.0], processor=[2.0, 2.0, 2.0], facts={"AUC": 0.75}),
        Measured(name="theirs", wall=[9.0, 8.0, 7.0], processor=[8.0, 8.0, 8.0]),
    ]
    keep("hpo", contestants, tmp_path, rows=300)
    keep("drift", contestants[:1], tmp_path)
    (tmp_path / "serving.json").write_text("{}")
    page = write(tmp_path).read_text()
    assert re.findall("<h2>(.*)</h2>", page) == ["drift", "hpo"]
    assert page.count("<svg") == 2
    assert "<td>ours &lt;fast&gt;</td><td>2</td><td>1.00</td><td>2</td><td>3</td><td>0.75</td>" in page
    assert "<td>theirs</td><td>8</td><td>4.00</td>" in page
    assert "rows: 300" in page


def test_without_benchmarks_it_says_what_makes_some(tmp_path):
    with pytest.raises(ValueError, match="make bench"):
        write(tmp_path)
