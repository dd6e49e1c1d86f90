#!/usr/bin/env bash
# pyarrow casts every seventh price to a double that is not the nearest; DuckDB, given the same column, to the nearest.
#
# Versions: duckdb==2.0.1 pyarrow==26.0.1, Python 3.11
# Expected: 353.34 as decimal(9, 2) becomes the double that the text 353.34 is. The digits and 10**2 are exact in a double, so
#   one division would round once.
# Behaviour: the cast to float64 rounds twice. What was computed from a column that Arrow cast is not equal to the same from
#   the text of a request, or from DuckDB over the same column. A cast through text is right.
# Seen:
#   pyarrow 353.34000000000003
#   DuckDB on the same column 353.34
#   of 100000 prices below 1000: pyarrow 13929 not the nearest, through text 0, DuckDB 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check duckdb==2.0.1 pyarrow==26.0.1
cat > "$folder/seen.py" <<'PY'
from decimal import Decimal

import duckdb
import pyarrow as pa

prices = [Decimal(cents).scaleb(-2) for cents in range(100_000)]
rows = pa.table({"price": pa.array(prices, pa.decimal128(9, 2))})
nearest = [float(price) for price in prices]
by_arrow = rows["price"].cast(pa.float64()).to_pylist()
by_text = rows["price"].cast(pa.string()).cast(pa.float64()).to_pylist()
by_duckdb = [value for (value,) in duckdb.sql("select cast(price as double) from rows").fetchall()]
print("pyarrow", by_arrow[35334])
print("DuckDB on the same column", by_duckdb[35334])


def count(found: list[float]) -> int:
    return sum(one != other for one, other in zip(found, nearest, strict=True))


print(
    f"of {len(prices)} prices below 1000: pyarrow {count(by_arrow)} not the nearest,"
    f" through text {count(by_text)}, DuckDB {count(by_duckdb)}"
)
PY
cd "$folder"
diff <("$folder/venv/bin/python" seen.py) - <<'SEEN'
pyarrow 353.34000000000003
DuckDB on the same column 353.34
of 100000 prices below 1000: pyarrow 13929 not the nearest, through text 0, DuckDB 0
SEEN
echo "as described"
