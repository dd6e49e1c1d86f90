#!/usr/bin/env bash
# DuckDB answers from a Parquet file's bounds, in which pyarrow left NaN out: the same rows answer two ways.
#
# Versions: duckdb==2.0.1 pyarrow==26.0.1, Python 3.11
# Expected: NaN is the greatest number in DuckDB, so `v > 10`, `isnan(v)` and `max(v)` find it in a file as in memory.
# Behaviour: the writer's statistics name 1 and 5 as bounds (NaN is left out, as the format asks); a filter is pruned by them, and
#   max(v) is read from them. In a select list, where nothing is pruned, the row is there; `not isfinite(v)` is right too.
# Seen:
#   count(*) from rows where isnan(v): 1 in memory, 0 in a file
#   count(*) from rows where v > 10: 1 in memory, 0 in a file
#   max(v) from rows: nan in memory, 5.0 in a file
#   count(*) filter (isnan(v)) from rows: 1 in memory, 1 in a file
#   count(*) from rows where not isfinite(v): 1 in memory, 1 in a file
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check duckdb==2.0.1 pyarrow==26.0.1
cat > "$folder/seen.py" <<'PY'
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

rows = pa.table({"v": [1.0, 2.0, float("nan"), 5.0]})
pq.write_table(rows, "rows.parquet")
for what in ("count(*) from {} where isnan(v)", "count(*) from {} where v > 10", "max(v) from {}",
             "count(*) filter (isnan(v)) from {}", "count(*) from {} where not isfinite(v)"):
    in_memory, in_file = (duckdb.sql("select " + what.format(name)).fetchall()[0][0] for name in ("rows", "'rows.parquet'"))
    print(what.format("rows") + ":", in_memory, "in memory,", in_file, "in a file")
PY
cd "$folder"
diff <("$folder/venv/bin/python" seen.py) - <<'SEEN'
count(*) from rows where isnan(v): 1 in memory, 0 in a file
count(*) from rows where v > 10: 1 in memory, 0 in a file
max(v) from rows: nan in memory, 5.0 in a file
count(*) filter (isnan(v)) from rows: 1 in memory, 1 in a file
count(*) from rows where not isfinite(v): 1 in memory, 1 in a file
SEEN
echo "as described"
