#!/usr/bin/env bash
# DuckDB reads a decimal of more than 38 digits from Parquet as DOUBLE without a word, so that two keys become one.
#
# Versions: duckdb==2.0.1 pyarrow==26.0.1, Python 3.11
# Expected: a decimal too wide for DuckDB is refused, as the very same column is when it comes as an Arrow table.
# Behaviour: from Parquet the column is DOUBLE: two values that differ in the 21st decimal fall into one group.
# Seen:
#   pyarrow reads back 2 values
#   DuckDB's type is DOUBLE
#   DuckDB counts 1
#   from Arrow: NotImplementedException
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check duckdb==2.0.1 pyarrow==26.0.1
cat > "$folder/seen.py" <<'PY'
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

one, other = Decimal("12345678901234567890.123456789012345678901"), Decimal("12345678901234567890.123456789012345678902")
rows = pa.table({"d": pa.array([one, other], pa.decimal256(60, 21))})
pq.write_table(rows, "rows.parquet")
print("pyarrow reads back", len(set(pq.read_table("rows.parquet")["d"].to_pylist())), "values")
print("DuckDB's type is", duckdb.sql("select typeof(d) from 'rows.parquet' limit 1").fetchall()[0][0])
print("DuckDB counts", duckdb.sql("select count(distinct d) from 'rows.parquet'").fetchall()[0][0])
try:
    duckdb.sql("select count(distinct d) from rows").fetchall()
except duckdb.NotImplementedException as error:
    print("from Arrow:", type(error).__name__)
PY
cd "$folder"
diff <("$folder/venv/bin/python" seen.py) - <<'SEEN'
pyarrow reads back 2 values
DuckDB's type is DOUBLE
DuckDB counts 1
from Arrow: NotImplementedException
SEEN
echo "as described"
